"""Loops of any length: one graph made from two lengths, and never trusted with a third before it was tried there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import itnet
from tests.spellings.loops import LOOPS


class Fading(nn.Module):
    """A recurrence that a library layer and a scan cannot run."""

    def forward(self, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            state = torch.sin(0.9 * state + x[:, step])
            states.append(state)
        return torch.stack(states, 1)


class Branching(Fading):
    """Other steps from ``limit`` on, which no graph of a shorter length shows."""

    limit = 30

    def forward(self, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            state = torch.sin(0.9 * state + x[:, step])
            if step >= self.limit:
                state = state.neg()
            states.append(state)
        return torch.stack(states, 1)


class Detached(Fading):
    """Gradients are cut at a step that short graphs do not have; outputs are the same."""

    def forward(self, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            state = torch.sin(0.9 * (state.detach() if step == 20 else state) + x[:, step])
            states.append(state)
        return torch.stack(states, 1)


class Other(Fading):
    """Half of the states are returned: their number does not change evenly with the length."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, : len(x[0]) // 2]


def _labels(unified: Any) -> list[str]:
    labels: list[str] = unified.report().to_dict()["variants"]
    return labels


def _assert_same(unified: nn.Module, module: nn.Module, x: Tensor) -> None:
    given, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, theirs = unified(given), module(other)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    (first,), (second,) = torch.autograd.grad(mine.sum(), given), torch.autograd.grad(theirs.sum(), other)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_a_second_length_makes_one_graph_for_all() -> None:
    module = Fading().eval()
    unified = itnet.unify(module, torch.randn(2, 9, 3))
    assert _labels(unified) == ["eval"]
    for length in (12, 9, 40, 13):
        _assert_same(unified, module, torch.randn(2, length, 3))
    assert _labels(unified) == ["eval", "eval (any length from 9 on)"]
    assert "any length from 9 on" in str(unified.report())
    assert unified.report().to_dict()["loops"][0]["least"] == 9
    _assert_same(unified, module, torch.randn(2, 5, 3))  # shorter than what has been seen: a graph of its own
    assert len(_labels(unified)) == 3


def test_every_further_size_is_compared_with_the_original_once() -> None:
    runs: list[tuple[int, ...]] = []

    class Counted(Fading):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(tuple(x.shape))
            return super().forward(x)

    unified = itnet.unify(Counted().eval(), torch.randn(2, 9, 3))
    unified(torch.randn(2, 12, 3))
    runs.clear()
    for shape in ((2, 40, 3), (2, 40, 3), (4, 40, 3), (4, 40, 3)):
        unified(torch.randn(shape))
    assert runs == [(2, 40, 3), (4, 40, 3)]


def test_a_branch_on_the_step_is_never_missed() -> None:
    module = Branching()
    unified = itnet.unify(module, torch.randn(2, 9, 3))
    for length in (12, 29, 31):
        _assert_same(unified, module, torch.randn(2, length, 3))
    assert "train (any length from 9 on)" in _labels(unified)
    assert len(_labels(unified)) > 2


def test_a_gradient_that_is_cut_is_never_missed() -> None:
    module = Detached()
    unified = itnet.unify(module, torch.randn(2, 9, 3))
    with torch.no_grad():
        unified(torch.randn(2, 12, 3))
        unified(torch.randn(2, 24, 3))  # without gradients there is no difference
    for length in (12, 24):
        _assert_same(unified, module, torch.randn(2, length, 3))


@pytest.mark.exhaustive
def test_weights_that_want_gradients_later_are_tried_again() -> None:
    class Scaled(Detached):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.scale)

    module = Scaled()
    unified = itnet.unify(module, torch.randn(2, 9, 3))
    x = torch.randn(2, 24, 3)
    unified(torch.randn(2, 12, 3)), unified(x)
    module.scale.requires_grad_()
    found, wanted = (torch.autograd.grad(run(x).sum(), module.scale) for run in (unified, module))
    torch.testing.assert_close(found, wanted)


def test_a_length_that_changes_unevenly_stays_fixed_and_the_reason_is_said() -> None:
    module = Other()
    unified = itnet.unify(module, torch.randn(2, 8, 3))
    for length in (11, 8):
        _assert_same(unified, module, torch.randn(2, length, 3))
    assert not any("any length" in label for label in _labels(unified))
    assert "length fixed at 8 steps: a number of slice changes unevenly with the length: 4, 5" in str(unified.report())


def test_an_axis_of_the_length_is_told_from_another_of_the_same_size() -> None:
    """Batch, length and width are one number, and the length comes with a second input."""

    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            state, states = torch.zeros_like(x[:, 0]), []
            for step in range(x.shape[1]):
                state = torch.where(mask[:, step, None], torch.sin(state + x[:, step]), state)
                states.append(state)
            return torch.stack(states, 1) + x

    module = Masked()
    unified = itnet.unify(module, (torch.randn(9, 9, 9), torch.rand(9, 9) < 0.5))
    for batch, length in ((9, 12), (2, 33), (1, 17)):
        x, mask = torch.randn(batch, length, 9), torch.rand(batch, length) < 0.5
        torch.testing.assert_close(unified(x, mask), module(x, mask))
    assert _labels(unified) == ["train", "train (any length from 9 on)"]


def test_a_long_first_call_is_captured_at_short_lengths() -> None:
    module = Fading()
    unified = itnet.unify(module, torch.randn(2, 500, 3))
    assert _labels(unified) == ["train (any length from 16 on)"]
    assert unified.report().to_dict()["operators"]["captured"] < 100
    for length in (500, 70, 16):
        _assert_same(unified, module, torch.randn(2, length, 3))
    copied = copy.deepcopy(unified)
    _assert_same(copied, module, torch.randn(2, 33, 3))


@pytest.mark.exhaustive
def test_a_long_loop_that_short_ones_do_not_show_is_captured_whole() -> None:
    module = Branching()
    x = torch.randn(2, 66, 3)
    unified = itnet.unify(module, x)
    assert _labels(unified) == ["train"]
    _assert_same(unified, module, x)


@pytest.mark.exhaustive
def test_unverified_and_fixed_sizes_are_not_generalised() -> None:
    for options in ({"verify": False}, {"dynamic": False}):
        unified = itnet.unify(Fading(), torch.randn(2, 9, 3), **options)
        unified(torch.randn(2, 12, 3))
        assert not any("any length" in label for label in _labels(unified))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    module = LOOPS["MinGru"].make(9).to(dtype)
    unified = itnet.unify(module, LOOPS["MinGru"].inputs(9)[0].to(dtype))
    for length in (12, 25):
        x = LOOPS["MinGru"].inputs(length)[0].to(dtype)
        torch.testing.assert_close(unified(x), module(x), rtol=3e-2 if dtype is torch.bfloat16 else 1e-10, atol=1e-2)
    assert len(_labels(unified)) == 2


@pytest.mark.exhaustive
def test_the_graph_for_all_lengths_is_exported_and_compiled() -> None:
    module = Fading().eval()
    unified = itnet.unify(module, torch.randn(2, 9, 3))
    x = torch.randn(2, 12, 3)
    unified(x)
    exported = torch.export.export(unified, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), module(x))
    compiled = torch.compile(unified, backend="eager")
    for length in (12, 9, 15):
        y = torch.randn(2, length, 3)
        torch.testing.assert_close(compiled(y), module(y))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LOOPS)
def test_every_spelling_serves_every_length(name: str) -> None:
    torch.manual_seed(0)
    program = LOOPS[name]
    module = program.make(9)
    unified = itnet.unify(module, program.inputs(9))
    for length in (12, 20, 64):
        given = program.inputs(length)
        torch.testing.assert_close(unified(*given), module(*given), rtol=1e-4, atol=1e-4)
    in_the_model = name in ("RungeKutta", "Iteration")
    assert _labels(unified) == (["train"] if in_the_model else ["train", "train (any length from 9 on)"])


@pytest.mark.exhaustive
def test_a_model_of_many_parameters_is_for_any_length_too(monkeypatch) -> None:
    """Gradients that are too many to be held are compared by projections; where one is cut, that is seen."""

    class Scaled(Detached):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.scale)

    monkeypatch.setattr("itnet_compiler.runtime.trial._GRADIENTS", 0)
    module = Scaled()
    unified = itnet.unify(module, torch.randn(2, 9, 3))
    _assert_same(unified, module, torch.randn(2, 12, 3))
    assert any("any length from 9 on" in label for label in _labels(unified))
    _assert_same(unified, module, torch.randn(2, 24, 3))
    assert len(_labels(unified)) > 2
