"""A unified model under torch.export: the rewritten graph, under the names of the original."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import itnet

X = torch.randn(3, 8, 6)
AUTO = ({0: Dim.AUTO, 1: Dim.AUTO},)


class Written(nn.Module):
    """Attention and a gated loop as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.gate = nn.Linear(6, 18), nn.Linear(6, 6)
        self.register_buffer("fading", torch.full((6,), 0.5))

    def forward(self, x, scale=None):
        q, k, v = self.project(x).chunk(3, -1)
        x = (q @ k.mT * 6**-0.5).softmax(-1) @ v
        state, states = torch.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            state = self.fading * state + torch.sigmoid(self.gate(x[:, step]))
            states.append(state)
        y = torch.stack(states, 1)
        return y if scale is None else y * scale


def operators(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("strict", [False, True])
def test_the_rewritten_graph_is_exported(strict):
    torch._dynamo.reset()
    model = Written()
    unified = itnet.unify(model, X)
    program = torch.export.export(unified, (X,), strict=strict)
    found = operators(program)
    assert any("scaled_dot_product" in name for name in found) and any(name.startswith("itnet") for name in found)
    assert len(found) < len(operators(torch.export.export(model, (X,)))) / 2
    assert program.state_dict.keys() == model.state_dict().keys()
    torch.testing.assert_close(program.module()(X), model(X))


def test_a_loop_is_exported_for_all_lengths_between_those_that_were_run():
    model = Written()
    unified = itnet.unify(model, X)
    unified(torch.randn(2, 40, 6))
    program = torch.export.export(unified, (X,), dynamic_shapes=AUTO)
    for batch, length in ((3, 8), (2, 17), (7, 40)):
        x = torch.randn(batch, length, 6)
        torch.testing.assert_close(program.module()(x), model(x))
    for length in (7, 41):
        with pytest.raises(AssertionError, match="Guard failed"):
            program.module()(torch.randn(2, length, 6))


class Changing(nn.Module):
    """Fades faster where there is much."""

    def forward(self, x):
        state, states = torch.zeros_like(x[:, 0]), []
        rate = 0.5 if x.shape[1] < 20 else 0.9
        for step in range(x.shape[1]):
            state = rate * state + x[:, step]
            states.append(state)
        return torch.stack(states, 1)


def test_a_length_at_which_the_graph_was_wrong_is_the_original_to_a_tracer():
    torch._dynamo.reset()
    model = Changing()
    unified = itnet.unify(model, X)
    for length in (11, 30):
        unified(torch.randn(2, length, 6))
    compiled = torch.compile(unified, backend="eager", dynamic=True)
    for length in (11, 15, 25, 30):
        x = torch.randn(2, length, 6)
        torch.testing.assert_close(compiled(x), model(x))


def test_a_loop_is_compiled_once_for_the_lengths_that_were_run():
    torch._dynamo.reset()
    model, graphs = Written(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    unified = itnet.unify(model, X)
    unified(torch.randn(2, 40, 6))
    compiled = torch.compile(unified, backend=backend, dynamic=True, fullgraph=True)
    for length in (9, 11, 40):
        x = torch.randn(2, length, 6)
        torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 1


class Lonely(nn.Module):
    """What it computes doubles where a batch has one example."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x):
        y = self.block(x)
        return y * 2 if x.shape[0] == 1 else y


@pytest.mark.parametrize("tried", [False, True])
@pytest.mark.parametrize("way", ["compile", "export", "strict export"])
@pytest.mark.parametrize("block", ["attention", "loop"])
def test_a_branch_on_a_batch_of_one_is_kept(block, way, tried):
    torch._dynamo.reset()
    model = Lonely(Layers() if block == "attention" else Written())
    unified = itnet.unify(model, X)
    x = torch.randn(1, X.shape[1], 6)
    if tried:
        torch.testing.assert_close(unified(x), model(x))
    if way == "compile":
        function = torch.compile(unified, backend="eager")
    else:
        function = torch.export.export(unified, (x,), strict=way == "strict export").module()
    torch.testing.assert_close(function(x), model(x))


@pytest.mark.parametrize("block", ["attention", "loop"])
def test_a_batch_of_one_is_exported_as_rewritten_once_it_was_run(block):
    model, name = (Layers(), "scaled_dot_product") if block == "attention" else (Written(), "itnet")
    unified = itnet.unify(model, X)
    x = torch.randn(1, X.shape[1], 6)
    assert not any(name in operator for operator in operators(torch.export.export(unified, (x,))))
    unified(x)
    program = torch.export.export(unified, (x,))
    assert any(name in operator for operator in operators(program))
    torch.testing.assert_close(program.module()(x), model(x))


class Layers(nn.Module):
    """A network that is the same for any size, as written."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 18)

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        return (q @ k.mT).softmax(-1) @ v


def test_a_graph_of_fixed_sizes_does_not_fix_those_that_are_asked_to_vary():
    model = Layers()
    unified = itnet.unify(model, X, dynamic=False)
    program = torch.export.export(unified, (X,), dynamic_shapes=({0: Dim("batch"), 1: Dim("length")},))
    for shape in ((2, 5, 6), (4, 9, 6)):
        torch.testing.assert_close(program.module()(x := torch.randn(shape)), model(x))


def test_calls_that_were_never_made_are_exported_as_the_original():
    model = Written()
    unified = itnet.unify(model, X)
    program = torch.export.export(unified, (X, torch.tensor(2.0)))
    assert operators(program) == operators(torch.export.export(model, (X, torch.tensor(2.0))))


def test_a_part_that_was_replaced_is_exported():
    unified = itnet.unify(Written(), X)
    unified.gate = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    program = torch.export.export(unified, (X,))
    assert operators(program).count("aten.tanh.default") == X.shape[1]
    torch.testing.assert_close(program.module()(X), unified(X))
