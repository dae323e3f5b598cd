"""The lowering of loops over rows: when it is chosen, and what it leaves to the library's."""

from __future__ import annotations

import pytest
import torch

import itnet
from itnet_compiler.ir.body import Body, Call, Progression, Ref
from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.gated import GATES, Gated
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.loop import Loop
from itnet_compiler.lowering.base import default_lowering, find_lowering
from tests.conformance import check_case, conformance_cases
from tests.runtime.rows.steps import STEPS, example, loop

pytest.importorskip("llvmlite")

FUSED = find_lowering("fused")
CASES = [
    case
    for case in conformance_cases(Loop, "fused")
    if case.check in ("forward", "gradient") and FUSED.supports(case.sample.spec).ok
]

ROLES = ("initial", "inputs", "shared")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case):
    check_case(case)


@pytest.mark.parametrize("name", STEPS)
def test_it_is_the_default_and_gives_finals(name):
    given = example(name, 3, 4, 1)
    spec = Spec(loop(name, given, 1), Past(), "loop", ROLES)
    assert default_lowering(spec).name == "fused"
    found, wanted = FUSED.build(spec).function(*given.values()), spec.kernel.evaluate(Past(), **given)
    torch.testing.assert_close(tuple(found), tuple(wanted))


@pytest.mark.parametrize("change", ["dtype", "rows"])
def test_other_operands_run_in_the_library(change):
    given = example("sine", 3, 4, 1)
    lowered = FUSED.build(Spec(loop("sine", given, 1), Past(), "loop", ROLES))
    other = {role: [one.bfloat16() if change == "dtype" else one for one in group] for role, group in given.items()}
    if change == "rows":  # one row that is repeated
        other["initial"] = [other["initial"][0][:1]]
    kernel = lowered.function(*other.values()), loop("sine", given, 1).evaluate(Past(), **other)
    assert torch.equal(kernel[0][0], kernel[1][0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_a_layer_that_was_written_out_is_the_librarys(cell, bias, batch_first):
    kernel = Gated(cell, bias=bias, batch_first=batch_first, training=True)
    spec = Spec(kernel, Past(), f"{cell} loop", ("input", "hidden", "weights"))
    assert default_lowering(spec).name == ("library" if cell == "lstm" else "fused")
    gates, states = GATES[cell], 1 + (cell == "lstm")
    generator = torch.Generator().manual_seed(0)
    sizes = [(gates * 4, 3), (gates * 4, 4), *[(gates * 4,)] * (2 * bias)]
    sizes = [(5, 2, 3), *[(1, 2, 4)] * states, *sizes]
    given = [torch.randn(size, generator=generator) / 2 for size in sizes]
    found = []
    for lowering in ("fused", "library"):
        x, *rest = [one.clone().requires_grad_() for one in given]
        hidden, weights = rest[:states], rest[states:]
        operands = x.transpose(0, 1) if batch_first else x, hidden if cell == "lstm" else hidden[0], weights
        made = find_lowering(lowering).build(spec).function(*operands)
        sum(one.square().sum() for one in made).backward()
        with torch.no_grad():  # an LSTM that learns is the library's
            again = find_lowering(lowering).build(spec).function(*operands)
        found.append([*made, *again, x.grad, *(one.grad for one in rest)])
    torch.testing.assert_close(*found)


def test_what_the_source_called_stays_what_it_called():
    spec = Spec(Gated("gru"), Past(), "gru", ("input", "hidden", "weights"))
    assert default_lowering(spec).name == "library"


def test_under_autocast_the_library_runs():
    given = example("normalised", 3, 4, 1)
    spec = Spec(loop("normalised", given, 1), Past(), "loop", ROLES)
    with torch.autocast("cpu", torch.bfloat16):
        found = [find_lowering(name).build(spec).function(*given.values()) for name in ("fused", "library")]
    assert torch.equal(found[0][0], found[1][0])


H, X, W, FIRST = Ref("carry", 0), Ref("step", 0), Ref("shared", 0), Ref("local", 0)


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ((Call("aten.softmax.int", (H, 0)),), "not known to act on rows alone"),
        ((Call("aten.mul.Tensor", (H, Progression(0.5, 0.25))),), "changes with the step"),
        ((Call("aten.cat.default", ((H, X), 0)),), "along the rows"),
        ((Call("aten.add.Tensor", (H, W)),), "a shared matrix is no factor"),
        ((Call("aten.matmul.default", (H, W)),), "not with a matrix that all steps share"),
        ((Call("aten.softplus.default", (H,)),), "no vector form of"),
        ((Call("aten.slice.Tensor", (H, 1, 0, 2)),), "changes its width"),
        ((Call("aten.gt.Tensor", (H, X)),), "a mask is carried"),
        ((Call("aten.logical_not.default", (H,)),), "logical_not of numbers"),
        ((Call("aten.gt.Tensor", (H, X)), Call("aten.add.Tensor", (FIRST, FIRST))), "add of masks alone"),
        ((Call("aten.where.self", (H, H, X)),), "a choice by what is no mask"),
    ],
)
def test_what_is_more_than_rows_is_refused_with_its_reason(calls, reason):
    shapes = (
        ("initial", (((3, 4), "float"),)),
        ("inputs", (((3, 5, 4), "float"),)),
        ("shared", (((2, 3, 4), "float"),)),
    )
    spec = Spec(Loop(Body(calls, (FIRST,), (FIRST,)), None, (1,), (1,), shapes), Past(), "loop", ROLES)
    support = FUSED.supports(spec)
    assert not support.ok
    assert reason in support.reasons[0]


class Padded(torch.nn.Module):
    """Sequences of several lengths: a row keeps its state once its sequence has ended."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.cell = way, torch.nn.Linear(9, 5)

    def forward(self, x, lengths):
        h, states = x.new_zeros(x.shape[0], 5), []
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        for t in range(x.shape[1]):
            new = torch.sin(self.cell(torch.cat([x[:, t], h], -1)))
            if self.way == "given":
                h = torch.where(mask[:, t, None], new, h)
            elif self.way == "counted":
                h = torch.where((t < lengths)[:, None], new, h)
            elif self.way == "filled":
                h = new.masked_fill(~mask[:, t, None], 0.25)
            elif self.way == "as numbers":
                h = (new > 0) * new + mask[:, t, None] * h
            else:
                h = torch.where((new > h) & mask[:, t, None], new, 0.5)
            states.append(h)
        return torch.stack(states, 1)


@pytest.mark.parametrize("way", ["given", "counted", "filled", "as numbers", "compared"])
def test_masks_are_part_of_a_row(way):
    torch.manual_seed(0)
    model, x, lengths = Padded(way), torch.randn(3, 8, 4), torch.tensor([8, 1, 5])
    unified = itnet.unify(model, (x, lengths))
    (node,) = unified.integrals.values()
    assert (node.origin, node.plan.lowering) == ("loop", "fused")
    for batch, length in ((3, 8), (7, 11)):
        x, lengths = torch.randn(batch, length, 4, requires_grad=True), torch.randint(0, length + 1, (batch,))
        results = []
        for one in (unified, model):
            made = one(x, lengths)
            pull = torch.linspace(-1, 1, made.numel()).view(made.shape)
            results.append([made, *torch.autograd.grad(made, [x, *model.parameters()], pull)])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


class Counted(torch.nn.Module):
    """Keeps whole numbers and masks of every step."""

    def forward(self, x):
        h, numbers, masks = torch.zeros_like(x[:, 0]), [], []
        for t in range(x.shape[1]):
            h = torch.sin(h + x[:, t])
            numbers.append((h > 0) * 2)
            masks.append(torch.where(h > 0.5, h > 0, x[:, t] > 0))
        return h, torch.stack(numbers, 1), torch.stack(masks, 1)


def test_whole_numbers_and_masks_keep_their_dtype():
    model, x = Counted(), torch.randn(3, 8, 4)
    unified = itnet.unify(model, x)
    assert [node.origin for node in unified.integrals.values()] == ["loop"]
    for found, expected in zip(unified(x), model(x), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("function", [torch.relu, lambda h: torch.maximum(h, -h * 0.5)])
def test_gradients_at_what_is_no_number(function):
    class Model(torch.nn.Module):
        def forward(self, x):
            h, states = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = torch.sin(function(0.9 * h + x[:, t]))
                states.append(h)
            return torch.stack(states, 1)

    unified = itnet.unify(Model(), torch.randn(2, 8, 3))
    assert [node.plan.lowering for node in unified.integrals.values()] == ["fused"]
    x = torch.randn(2, 8, 3)
    x[0, 3, 1] = torch.nan
    found, expected = (
        torch.autograd.grad(one(given := x.clone().requires_grad_()).sum(), given)[0] for one in (unified, Model())
    )
    torch.testing.assert_close(found, expected, equal_nan=True)
