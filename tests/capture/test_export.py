"""Capture: a flat graph that refers to the model's tensors by path, valid for stated sizes, the model untouched."""

import inspect

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.capture.export import capture
from itnet_compiler.capture.signature import SignatureReader
from itnet_compiler.unified import program_of


def captured(model, *inputs, axes="all", **kwargs):
    return capture(model, SignatureReader(inspect.signature(model.forward)).read(inputs, kwargs), axes=axes)


def test_tensors_are_referred_to_by_path():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.plain = nn.Linear(3, 3), torch.ones(3)
            self.tied = self.layer
            self.register_buffer("scale", torch.ones(3))

        def forward(self, x):
            return self.tied(x) * self.scale + self.plain + torch.tensor(2.0)

    result = captured(Model(), torch.randn(2, 3))
    paths = {str(node.target) for node in result.graph.nodes if node.op == "get_attr"}
    assert {"layer.weight", "layer.bias", "scale", "plain"} <= paths
    assert [node.target for node in result.graph.nodes if node.op == "placeholder"] == ["x"]


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_no_example_batch_specialises_the_batch(rows):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    unified = itnet.unify(model, torch.randn(rows, 3))
    for other in (4, 1, 0, 7):
        x = torch.randn(other, 3)
        assert torch.equal(model(x), unified(x))
    assert len(program_of(unified).variants) == 1


def test_a_model_that_treats_a_batch_of_one_otherwise_gets_a_graph_of_its_own():
    class Squeezes(nn.Module):
        def forward(self, x):
            return x.squeeze() * 2 if x.shape[0] == 1 else x * 3

    model = Squeezes()
    unified = itnet.unify(model, torch.randn(4, 3))
    for rows in (1, 4, 1, 2):
        x = torch.randn(rows, 3)
        assert unified(x).shape == model(x).shape and torch.equal(unified(x), model(x))
    assert len(program_of(unified).variants) == 2


def test_static_capture_fixes_every_size():
    result = captured(nn.Linear(3, 4), torch.randn(5, 3), axes="none")
    assert not result.guards.dynamic
    assert result.guards.fit([(5, 3)]) and not result.guards.fit([(6, 3)])


def test_guards_say_what_is_violated():
    result = captured(nn.Conv1d(3, 4, 3), torch.randn(2, 3, 8))
    assert result.guards.fit([(7, 3, 63)])
    assert not result.guards.fit([(2, 4, 8)])
    assert result.guards.violated([(2, 4, 8)]) == ["shape0[1] == 3"]


def test_sizes_that_must_agree_are_checked():
    class Adds(nn.Module):
        def forward(self, x, y):
            return x + y

    result = captured(Adds(), torch.randn(4, 3), torch.randn(4, 3))
    assert result.guards.fit([(5, 3), (5, 3)]) and not result.guards.fit([(5, 3), (4, 3)])


def test_containers_go_in_and_come_out():
    class Nested(nn.Module):
        def forward(self, batch, flags):
            x, (y, z) = batch["x"], batch["pair"]
            return {"sum": x + y, "rest": [z * flags["scale"], None, 3]}

    batch = {"x": torch.randn(2, 3), "pair": (torch.randn(2, 3), torch.randn(2))}
    model = Nested()
    unified = itnet.unify(model, (batch, {"scale": 2.0}))
    expected, found = model(batch, {"scale": 2.0}), unified(batch, {"scale": 2.0})
    assert torch.equal(expected["sum"], found["sum"]) and torch.equal(expected["rest"][0], found["rest"][0])
    assert found["rest"][1:] == [None, 3]
    assert torch.equal(unified(batch, {"scale": 3.0})["rest"][0], batch["pair"][1] * 3.0)


def test_the_same_tensor_given_twice_stays_two_inputs():
    class Two(nn.Module):
        def forward(self, a, b):
            return a - 2 * b

    model, x, y = Two(), torch.randn(3, 3), torch.randn(3, 3)
    unified = itnet.unify(model, (x, x))
    assert torch.equal(unified(x, y), model(x, y))


def test_variadic_and_keyword_only_arguments():
    class Variadic(nn.Module):
        def forward(self, x, *more, scale=1.0):
            return sum(more, x) * scale

    model, x = Variadic(), torch.randn(2, 2)
    unified = itnet.unify(model, (x, x + 1, x + 2), example_kwargs={"scale": 2.0})
    assert torch.equal(unified(x, x, x, scale=2.0), model(x, x, x, scale=2.0))
    assert torch.equal(unified(x), model(x))


def test_a_module_with_hooks_becomes_a_boundary():
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU()))
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    unified = itnet.unify(model, torch.zeros(2, 2, 2))
    assert list(unified.parts) == ["0", "1"]
    seen.clear()
    unified(torch.zeros(2, 2, 2))
    assert seen == [1]


def test_what_cannot_be_captured_whole_says_where():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    unified = itnet.unify(Branches(), torch.ones(2))
    (left,) = unified.report().to_dict()["left"]
    assert "value of a tensor" in left["reasons"][0] and "test_export.py" in left["reasons"][0]
    assert torch.equal(unified(-torch.ones(2)), torch.ones(2))


def test_in_place_changes_of_inputs_happen():
    class Writes(nn.Module):
        def forward(self, x):
            x.add_(1)
            return x * 2

    model = Writes()
    unified = itnet.unify(model, torch.zeros(2, 2))
    a, b = torch.zeros(3, 2), torch.zeros(3, 2)
    assert torch.equal(model(a), unified(b)) and torch.equal(a, b)


def test_tensors_passed_through_keyword_arguments_stay_symbolic():
    class Options(nn.Module):
        def forward(self, x, **options):
            return x * options.get("gain", 1.0) + options.get("bias", 0.0)

    model = Options()
    unified = itnet.unify(
        model, torch.randn(2, 3), example_kwargs={"gain": torch.tensor(2.0), "bias": torch.randn(2, 3)}
    )
    for rows in (2, 5, 1):
        x, options = torch.randn(rows, 4), {"gain": torch.tensor(3.0), "bias": torch.randn(rows, 4)}
        assert torch.equal(model(x, **options), unified(x, **options))
    assert len(program_of(unified).variants) == 1


def test_hooks_of_the_root_run_once_around_the_graph():
    model, seen = nn.Sequential(nn.Conv1d(3, 3, 3)).eval(), []
    model.register_forward_hook(lambda module, args, output: seen.append(1) or output * 2)
    model.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    x = torch.randn(2, 3, 9)
    unified = itnet.unify(model, x)
    seen.clear()
    found = unified(x)
    assert len(seen) == 1 and torch.equal(found, model(x))
    assert not program_of(unified).fallbacks and unified.integrals


def test_a_size_as_an_argument():
    """torch.export mixes up torch.Size, tuples and lists; the module is given what it was given."""

    class Sized(nn.Module):
        def forward(self, x, size, *, more):
            assert isinstance(size, torch.Size) and isinstance(more["like"], torch.Size)
            return x.reshape(size.numel() // 4, 4) + more["like"][0]

    model, x = Sized(), torch.randn(2, 3, 4)
    unified = itnet.unify(model, (x, x.shape), example_kwargs={"more": {"like": x.shape}})
    for rows in (2, 5, 3):
        x = torch.randn(rows, 3, 4)
        assert torch.equal(model(x, x.shape, more={"like": x.shape}), unified(x, x.shape, more={"like": x.shape}))
    assert not program_of(unified).fallbacks


def test_sizes_that_the_exporter_cannot_solve_for_are_fixed():
    """AlexNet: strides and poolings nest floor divisions that no inequality can be solved for."""
    layers = [nn.Conv2d(3, 4, 11, 4, 2), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 5, padding=2), nn.MaxPool2d(3, 2)]
    model = nn.Sequential(*layers, nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(6)).eval()
    unified = itnet.unify(model, torch.randn(2, 3, 64, 64))
    assert unified.report().to_dict()["whole"] and len(unified.integrals) == 6
    for batch, side in ((3, 64), (1, 64), (2, 96)):
        x = torch.randn(batch, 3, side, side)
        assert torch.equal(unified(x), model(x))
