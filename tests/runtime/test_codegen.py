"""Generated code: one function, right results, nothing kept alive, cheap bindings that mean the same."""

import gc
import inspect
import re
import weakref

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.capture.export import capture
from itnet_compiler.capture.signature import SignatureReader
from itnet_compiler.lowering.bindings import _table, binding
from itnet_compiler.runtime.codegen import generate

X, X3, X4, ONES3 = torch.rand(3, 3), torch.rand(3, 3, 3), torch.rand(2, 3, 4, 4), torch.ones(3)


def generated(model, *inputs):
    result = capture(model, SignatureReader(inspect.signature(model.forward)).read(inputs, {}))
    return generate(result.graph, result.output, result.constants)


# Arguments that no value drawn by type alone would fit.
FITTING = {
    "aten.batch_norm.default": (X4, ONES3, ONES3, ONES3, ONES3, False, 0.1, 1e-5, False),
    "aten.group_norm.default": (X4, 3, ONES3, ONES3),
    "aten.instance_norm.default": (X4, None, None, None, None, True, 0.1, 1e-5, False),
    "aten.layer_norm.default": (X, [3], ONES3, ONES3, 1e-5),
    "aten.rms_norm.default": (X, [3], ONES3, 1e-5),
    "aten.embedding.default": (X, torch.tensor([1, 0])),
    "aten.bmm.default": (X3, X3),
    "aten.baddbmm.default": (X3, X3, X3),
    "aten.gather.default": (X, 1, torch.zeros(3, 2, dtype=torch.long)),
    "aten.index_select.default": (X, 0, torch.tensor([2, 0])),
    "aten.scatter.src": (X, 0, torch.zeros(3, 3, dtype=torch.long), X),
    "aten.masked_fill.Scalar": (X, X > 0.5, 2.0),
    "aten.masked_fill.Tensor": (X, X > 0.5, torch.tensor(2.0)),
    "aten.masked_fill_.Scalar": (X, X > 0.5, 2.0),
    "aten.masked_fill_.Tensor": (X, X > 0.5, torch.tensor(2.0)),
    "aten.where.self": (X > 0.5, X, X * 2),
    "aten.prelu.default": (X, ONES3[:1]),
    "aten.pixel_shuffle.default": (torch.rand(1, 4, 2, 2), 2),
    "aten.channel_shuffle.default": (torch.rand(1, 4, 2, 2), 2),
    "aten.expand.default": (X[:1], [5, 3]),
    "aten.view.default": (X, [9]),
    "aten.reshape.default": (X, [9]),
    "aten.repeat.default": (X, [2, 1]),
    "aten.permute.default": (X, [1, 0]),
    "aten.split_with_sizes.default": (X, [1, 2]),
    "aten.pad.default": (X, [1, 2]),
    "aten.to.dtype": (X, torch.float64),
    "aten.cat.default": ([X, X], 1),
    "aten.stack.default": ([X, X], 1),
    "aten.outer.default": (ONES3, ONES3),
    "aten.unfold.default": (X, 0, 2, 1),
    "aten.rot90.default": (X, 1, [0, 1]),
    "aten.movedim.intlist": (X, [0], [1]),
    "aten.clamp.default": (X, 0.2, 0.7),
    "aten.clamp_.default": (X, 0.2, 0.7),
    "aten.flip.default": (X, [0]),
    "aten.glu.default": (torch.rand(2, 4), 1),
    "aten.mean.dim": (X, [1], True),
    "aten.sum.dim_IntList": (X, [0], True),
    "aten.roll.default": (X, [1], [0]),
    "aten.linear.default": (X, X, ONES3),
    "aten.alpha_dropout.default": (X, 0.5, True),
}


def drawn(argument):
    """A value of the argument's type."""
    kind = str(argument.type)
    if kind == "Tensor":
        return X.clone()
    by_kind = {"int": 1, "number": 2, "float": 0.5, "bool": False, "List[int]": [0], "List[Tensor]": [X, X]}
    return argument.default_value if argument.has_default_value() else by_kind[kind.replace("Optional", "").strip("[]")]


@pytest.mark.parametrize("name", sorted(_table()))
def test_a_binding_does_what_its_operator_does(name):
    _, operator, overload = name.split(".")
    target = getattr(getattr(torch.ops.aten, operator), overload)
    positional = [argument for argument in target._schema.arguments if not argument.kwarg_only]
    given = FITTING.get(name) or tuple(drawn(argument) for argument in positional)

    def outcome(function):
        args = torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, given)
        torch.manual_seed(0)
        result = function(*args)
        leaves = torch.utils._pytree.tree_leaves((result, args))
        return [leaf for leaf in leaves if isinstance(leaf, (torch.Tensor, int))]

    for a, b in zip(outcome(target), outcome(binding(target)), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_the_source_is_readable_and_drops_what_is_dead():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Conv1d(2, 2, 1)).eval()
    code = generated(model, torch.randn(5, 2, 3))
    assert code.source.startswith("def run(")
    assert "= None" in code.source
    assert code.paths[0].endswith("weight")


def test_intermediate_values_do_not_outlive_their_last_use():
    seen = []

    class Watches(nn.Module):
        def forward(self, x):
            y = x * 2
            z = y + 1
            return (z * 3).sum()

    model = Watches()
    code = generated(model, torch.randn(3, 3))
    # The first product is dropped by the line that uses it last.
    lines = [line for line in code.source.splitlines() if "mul" in line and "= None" in line]
    assert lines or "v_mul = None" in code.source
    result = code.function(torch.ones(2, 2))
    seen.append(weakref.ref(result))
    assert float(result) == 36.0
    del result
    gc.collect()
    assert seen[0]() is None


@pytest.mark.parametrize(
    "result",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: [x, x + 1],
        lambda x: {"a": x, "b": (x, [x])},
        lambda x: (x, None, 3, "text", 1.5),
        lambda x: (x.sum(), x.shape[0]),
        lambda x: torch.max(x, 0),
    ],
)
def test_return_values_keep_their_structure(result):
    class Returns(nn.Module):
        def forward(self, x):
            return result(x * 1)

    model, x = Returns(), torch.arange(6.0).reshape(2, 3)
    expected, found = model(x), itnet.unify(model, x)(x)
    flat = torch.utils._pytree.tree_flatten
    assert str(flat(expected)[1]).replace("max", "") == str(flat(found)[1]).replace("max", "")
    for a, b in zip(flat(expected)[0], flat(found)[0], strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_special_numbers_and_types_survive():
    class Special(nn.Module):
        def forward(self, x):
            y = x.masked_fill(x > 0, float("-inf")).to(torch.float64)
            return torch.nan_to_num(y, neginf=-7.0) + torch.full_like(y, float("inf")).isinf()

    model, x = Special(), torch.randn(3, 3)
    assert torch.equal(model(x), itnet.unify(model, x)(x))


def test_blocks_without_gradients_stay_so():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            with torch.no_grad():
                y = self.a(x)
            return self.b(y)

    model, x = Frozen(), torch.randn(2, 3)
    unified = itnet.unify(model, x, copy=True)
    assert torch.equal(model(x), unified(x))
    model(x).sum().backward(), unified(x).sum().backward()
    assert unified.a.weight.grad is None and torch.equal(model.b.weight.grad, unified.b.weight.grad)


class Regions(nn.Module):
    """Blocks of several modes, next to and within each other; fails on odd batches, in the innermost of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            a = self.linear(x)
            with torch.no_grad():
                b = self.linear(a).relu()
                with torch.enable_grad():
                    c = b.view(-1, 2, 3) * a.view(-1, 2, 3)
            d = self.linear(c)
        return d.float() + self.linear(x).view(-1, 2, 3)


REGIONS = """
    with torch.autocast('cpu', torch.bfloat16, True, None):
        v = linear()
        with torch.set_grad_enabled(False):
            v = linear()
            v = relu()
            with torch.set_grad_enabled(True):
                v = view()
                v = view()
                v = mul()
        v = linear()
    v = to()
    v = linear()
    v = view()
    v = add()
    return v
"""


def test_neighbours_of_one_mode_share_a_block():
    source = generated(Regions(), torch.randn(4, 3)).source
    plain = re.sub(r"; .* = None|_metadata", "", source.partition("\n")[2])
    plain = re.sub(r"(\w+)\(v_.*\)", r"\1()", re.sub(r"v_\w+ =", "v =", plain))
    assert re.sub(r"return v_\w+", "return v", plain) == REGIONS[1:]


def test_without_blocks_there_are_none():
    assert "with " not in generated(nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.ReLU()), torch.randn(2, 3)).source


def test_an_error_within_a_block_does_not_leak_its_mode():
    code, weights = generated(Regions(), torch.randn(4, 3)), Regions().linear.state_dict()
    tensors = [weights[path.removeprefix("linear.")] for path in code.paths]
    code.function(*tensors, torch.randn(6, 3))
    with pytest.raises(RuntimeError):
        code.function(*tensors, torch.randn(5, 3))
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_values_are_dropped_within_blocks_too():
    class Chain(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                y = (x * 2 + 1).exp()
            return y.sum() + y

    lines = [line.strip() for line in generated(Chain(), torch.randn(3, 3)).source.splitlines()]
    dead = [re.sub(r"_\d+", "", line.split("; ")[1]) for line in lines if "; " in line]
    assert dead == ["v_mul = None", "v_add = None", "v_exp = v_sum = None"], lines


def test_blocks_compile_without_a_break():
    torch.manual_seed(0)
    model, x = Regions(), torch.randn(4, 3)
    code = generated(model, x)
    tensors = [model.get_parameter(path) for path in code.paths]
    compiled = torch.compile(code.function, backend="eager", fullgraph=True)
    for ambient in (torch.enable_grad, torch.no_grad):
        with ambient():
            result, expected = compiled(*tensors, x), model(x)
        assert torch.equal(result, expected) and result.requires_grad == expected.requires_grad


def test_unknown_operators_are_called_as_they_are():
    assert binding(torch.ops.aten.fft_rfft.default) is torch.ops.aten.fft_rfft.default
    assert binding(len) is len


@pytest.mark.parametrize(
    "model", [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.Softmax(-1))]
)
def test_compiles_without_a_break(model):
    unified = itnet.unify(model.eval(), torch.randn(2, 3))
    compiled = torch.compile(unified, backend="eager", fullgraph=True)
    x = torch.randn(4, 3)
    assert torch.equal(compiled(x), model(x))
