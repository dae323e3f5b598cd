"""Unrolled loops become one node each, of a size that does not depend on the length, and compute the same."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import itnet
from tests.spellings.loops import LOOPS, NEAR_MISSES, Loop

SHORT, LONG = 9, 12

# Those that are unlike each other; the rest are tested in make test-all.
OFTEN = set(
    "LstmCell GruCellBackwards TwoLoops LstmWritten LstmHoisted GruOtherConvention GruOriginal TwoStepsBack RungeKutta"
    " OtherAxis MinGru Masked Retention Shifted ReadsWhatItWrites CollectedThenChanged InputChanged StatesExchanged"
    " GruUpdateFedByCandidate Dropped ResultChanged ProjectionThenChanged ProjectionWithoutGradients BufferReadWhole"
    " Interleaved OfSomeSteps".split()
)


def _programs(table: dict[str, Loop]) -> list[Any]:
    assert len(OFTEN & set(table)) > 9
    return [name if name in OFTEN else pytest.param(name, marks=pytest.mark.exhaustive) for name in table]


def _made(program: Loop, steps: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return program.make(steps), program.inputs(steps)


def _results(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of a weighted sum of them; the random stream begins anew."""
    torch.manual_seed(1)
    given = [value.clone().requires_grad_() for value in inputs]
    outputs = pytree.tree_leaves(module(*given))
    total = sum((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum() for out in outputs)
    leaves = [*given, *module.parameters()]
    return outputs, list(torch.autograd.grad(total, leaves, materialize_grads=True, allow_unused=True))


def _assert_same(unified: nn.Module, module: nn.Module, inputs: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    mine, theirs = _results(unified, inputs), _results(module, inputs)
    assert [out.stride() for out in mine[0]] == [out.stride() for out in theirs[0]]
    for values, wanted in zip(mine, theirs, strict=True):
        scale = max(float(value.detach().norm()) for value in wanted)
        for found, expected in zip(values, wanted, strict=True):
            assert float((found - expected).detach().norm()) <= tolerance * max(scale, 1e-3)


def _count(unified: Any) -> int:
    return len(unified.graph.nodes)


@pytest.mark.parametrize("name", _programs(LOOPS))
def test_a_loop_is_one_node(name: str) -> None:
    program, counts = LOOPS[name], []
    for steps in (SHORT, LONG):
        module, inputs = _made(program, steps)
        unified = itnet.unify(module, inputs)
        assert sorted(node.origin for node in unified.integrals.values()) == sorted(program.origins or ())
        assert all(node.verification.status == "verified" for node in unified.integrals.values())
        _assert_same(unified, module, inputs)
        counts.append(_count(unified))
    assert counts[0] == counts[1]


# A loop that counts its steps asks for their number where it is free; one that is given nothing makes a range too.
COUNTING = {("Teacher", 256): 2, ("Teacher", 1024): 2, ("Ended", 256): 1, ("Ended", 1024): 1}


@pytest.mark.exhaustive
@pytest.mark.parametrize("steps", [64, 256, 1024])
@pytest.mark.parametrize("name", LOOPS)
def test_a_long_loop_is_one_node(name: str, steps: int) -> None:
    counts = []
    for length in (16, steps):
        module, inputs = _made(LOOPS[name], length)
        unified = itnet.unify(module, inputs)
        _assert_same(unified, module, inputs, 1e-3)
        counts.append(_count(unified))
    assert counts[0] + COUNTING.get((name, steps), 0) == counts[1]


@pytest.mark.parametrize("name", _programs(NEAR_MISSES))
def test_what_is_no_such_loop_computes_the_same(name: str) -> None:
    module, inputs = _made(NEAR_MISSES[name], SHORT)
    unified = itnet.unify(module, inputs)
    _assert_same(unified, module, inputs)


@pytest.mark.parametrize("name", ["Peephole", "SigmoidOfTheCandidate", "GatesOfTheCell", "StatesExchanged"])
def test_what_is_nearly_an_lstm_is_none(name: str) -> None:
    module, inputs = _made(NEAR_MISSES[name], SHORT)
    (node,) = itnet.unify(module, inputs).integrals.values()
    assert node.origin == "loop"


def test_layers_that_share_weights_stay_layers_and_the_reason_is_given() -> None:
    module, inputs = _made(NEAR_MISSES["LayersTied"], SHORT)
    unified = itnet.unify(module, inputs)
    assert [node.origin for node in unified.integrals.values()] == ["conv1d"] * 10


@pytest.mark.parametrize("name", ["LstmWritten", "MinGru"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    module, inputs = _made(LOOPS[name], SHORT)
    module, inputs = module.to(dtype), tuple(value.to(dtype) for value in inputs)
    unified = itnet.unify(module, inputs)
    assert len(unified.integrals) == 1
    _assert_same(unified, module, inputs, 1e-12 if dtype is torch.float64 else 0.05)


@pytest.mark.parametrize("name", ["LstmHoisted", "GruOriginal"])
def test_batch_sizes_and_strides(name: str) -> None:
    """The batch stays symbolic; empty and single batches, and permuted inputs, run."""
    module, inputs = _made(LOOPS[name], SHORT)
    unified = itnet.unify(module, inputs)
    for batch in (0, 1, 2, 7):
        x = torch.randn(SHORT, batch, inputs[0].shape[-1]).transpose(0, 1)
        torch.testing.assert_close(unified(x), module(x))


@pytest.mark.parametrize("name", ["LstmCell", "GruOriginal", "MinGru"])
def test_the_result_is_copied_unified_again_and_compiled(name: str) -> None:
    module, inputs = _made(LOOPS[name], SHORT)
    unified = itnet.unify(module, inputs)
    _assert_same(copy.deepcopy(unified), module, inputs)
    _assert_same(itnet.unify(unified, inputs), module, inputs)
    exported = torch.export.export(unified, inputs, strict=False)
    torch.testing.assert_close(exported.module()(*inputs), module(*inputs))


def test_the_body_is_printed_and_is_plain_data() -> None:
    module, inputs = _made(LOOPS["GruOriginal"], SHORT)
    unified = itnet.unify(module, inputs)
    (node,) = unified.integrals.values()
    text = str(unified.ir)
    assert "kernel gated(loop of" in text
    assert "%h0 ← %" in text
    assert pickle.loads(pickle.dumps(node.spec)) == node.spec == copy.deepcopy(node.spec)
    assert hash(node.spec) == hash(copy.deepcopy(node.spec))
    assert "for " in node.source()


def test_another_length_is_another_graph() -> None:
    module, inputs = _made(LOOPS["LstmCell"], SHORT)
    unified = itnet.unify(module, inputs)
    longer = LOOPS["LstmCell"].inputs(LONG)
    torch.testing.assert_close(unified(*longer), module(*longer))
    torch.testing.assert_close(unified(*inputs), module(*inputs))


def test_the_reason_why_not_is_in_the_report() -> None:
    module, inputs = _made(NEAR_MISSES["StepCounts"], SHORT)
    unified = itnet.unify(module, inputs)
    assert "unevenly" in str(unified.explain(""))


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.exhaustive)])
def test_a_number_is_not_rounded_to_half_precision(dtype: torch.dtype) -> None:
    """0.995 is 0.9961 in bfloat16: a sum over many steps would be another one."""

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            state, states = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                state = 0.995 * state + x[:, t]
                states.append(state)
            return torch.stack(states, 1), state

    x = torch.rand(2, 200, 3).to(dtype)
    unified = itnet.unify(Slow(), x)
    (node,) = unified.integrals.values()
    assert node.origin == "linear recurrence"
    assert not any("original code" in note for note in unified.report().notes())
    for found, exact in zip(unified(x), Slow()(x.double()), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=0.01, atol=0.01)
