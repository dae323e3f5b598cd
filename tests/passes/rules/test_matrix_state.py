"""Loops over a sum of outer products are one node over a matrix state, however they are written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import itnet
from itnet_compiler.ir.arranged_state import ArrangedState

B, H, K, V = 2, 3, 4, 5

Step = Callable[..., tuple[Tensor, Tensor]]


class Loop(nn.Module):
    """``step(S, q_t, k_t, v_t, *others_t)`` over axis 2 of [B, H, T, ·]; from ``initial``; with the final state."""

    def __init__(
        self, step: Step, given: bool = False, final: bool = False, states: bool = False, turned: bool = False
    ) -> None:
        super().__init__()
        self.step, self.given, self.final, self.states, self.turned = step, given, final, states, turned

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> Any:
        widths = (v.shape[3], q.shape[3]) if self.turned else (q.shape[3], v.shape[3])
        state = others[0] if self.given else q.new_zeros(*q.shape[:2], *widths)
        timed, outputs, states = others[self.given :], [], []
        for t in range(q.shape[2]):
            state, y = self.step(state, q[:, :, t], k[:, :, t], v[:, :, t], *(other[:, :, t] for other in timed))
            outputs.append(y)
            states.append(state)
        outputs = torch.stack(outputs, 2)
        if self.states:
            return outputs, torch.stack(states, 2)
        return (outputs, state) if self.final else outputs


def _read(state: Tensor, q: Tensor) -> Tensor:
    return torch.einsum("bhk,bhkv->bhv", q, state)


def _multiplied(state, q, k, v):
    state = 0.9 * state + k[..., None] * v[..., None, :]
    return state, (q[..., None] * state).sum(-2)


def _matmul(state, q, k, v):
    state = state + k.unsqueeze(-1) @ v.unsqueeze(-2)
    return state, (q.unsqueeze(-2) @ state).squeeze(-2)


def _each_step(state, q, k, v, a):
    state = a[..., None, None] * state + torch.einsum("bhk,bhv->bhkv", k, v)
    return state, _read(state, q)


def _each_key(state, q, k, v, a):
    state = torch.sigmoid(a)[..., None] * state + k[..., None] * v[..., None, :]
    return state, _read(state, q)


def _values_first(state, q, k, v):
    state = 0.5 * state + v[..., None] * k[..., None, :]
    return state, (state @ q[..., None]).squeeze(-1)


def _gated(state, q, k, v, f, i):
    """The matrix memory of xLSTM, arXiv:2405.04517, equation 19."""
    state = f[..., None, None] * state + i[..., None, None] * (v[..., None, :] * k[..., None])
    return state, _read(state, q * K**-0.5)


def _scaled(state, q, k, v):
    return (state := state.mul(0.7).add(k[..., None] * v[..., None, :] / 3)), _read(state, 0.5 * q)


def _in_place(state, q, k, v):
    state = state * 0.7
    state.add_(k[..., None] * v[..., None, :])
    return state, _read(state, q)


def _addcmul(state, q, k, v):
    state = torch.addcmul(state, k[..., None], v[..., None, :])
    return state, _read(state, q)


def _exponential(state, q, k, v, a):
    state = torch.exp(-a.square())[..., None] * state + k[..., None] * v[..., None, :]
    return state, _read(state, q).relu()


def _inputs(steps: int, *others: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = {"state": (B, H, K, V), "step": (B, H, steps), "key": (B, H, steps, K), "value": (B, H, steps, V)}
    known = [shapes["key"], shapes["key"], shapes["value"], *(shapes[name] for name in others)]
    return tuple(torch.rand(shape, dtype=torch.float64).to(dtype) for shape in known)


SPELLINGS: dict[str, tuple[nn.Module, tuple[str, ...]]] = {
    "multiplied, constant decay": (Loop(_multiplied), ()),
    "matmul, no decay, final state": (Loop(_matmul, final=True), ()),
    "decay of each step, initial and final state": (Loop(_each_step, given=True, final=True), ("state", "step")),
    "decay of each key": (Loop(_each_key), ("key",)),
    "values first": (Loop(_values_first, final=True, turned=True), ()),
    "input gate": (Loop(_gated, given=True), ("state", "step", "step")),
    "scaled": (Loop(_scaled), ()),
    "in place": (Loop(_in_place), ()),
    "addcmul": (Loop(_addcmul), ()),
    "exponential": (Loop(_exponential), ("key",)),
}


def _results(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs and gradients."""
    given = [value.clone().requires_grad_() for value in inputs]
    found = module(*given)
    outputs = list(found) if isinstance(found, tuple) else [found]
    total = sum((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum() for out in outputs)
    return [*outputs, *torch.autograd.grad(total, given)]


def _assert_same(unified: nn.Module, module: nn.Module, inputs: tuple[Tensor, ...], tolerance: float = 1e-12) -> None:
    for found, expected in zip(_results(unified, inputs), _results(module, inputs), strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert float((found - expected).detach().norm()) <= tolerance * float(expected.detach().norm())


RARE = {"scaled", "in place", "exponential", "addcmul"}


def _node(unified: Any) -> Any:
    (node,) = unified.integrals.values()
    assert isinstance(node.kernel, ArrangedState)
    assert node.verification.status == "verified"
    return node


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive) if name in RARE else name for name in SPELLINGS]
)
def test_a_spelling_is_one_node(name: str) -> None:
    module, others = SPELLINGS[name]
    inputs = _inputs(6, *others)
    unified = itnet.unify(module, inputs)
    _node(unified)
    _assert_same(unified, module, inputs)


def test_its_size_does_not_depend_on_the_length() -> None:
    module, others = SPELLINGS["decay of each step, initial and final state"]
    short, long = (itnet.unify(module, _inputs(steps, *others)) for steps in (5, 8))
    assert _node(short).name == _node(long).name
    assert len(short.graph.nodes) == len(long.graph.nodes)


def test_a_sum_of_keys_that_normalises_is_a_scan_beside_it() -> None:
    class Normalised(nn.Module):
        def forward(self, q, k, v):
            state, total, outputs = q.new_zeros(*q.shape[:2], K, V), q.new_zeros(*q.shape[:2], K), []
            for t in range(q.shape[2]):
                state = state + k[:, :, t, :, None] * v[:, :, t, None, :]
                total = total + k[:, :, t]
                outputs.append(_read(state, q[:, :, t]) / (q[:, :, t] * total).sum(-1, keepdim=True))
            return torch.stack(outputs, 2)

    unified = itnet.unify(Normalised(), _inputs(6))
    assert sorted(node.origin for node in unified.integrals.values()) == ["linear attention", "linear recurrence"]
    _assert_same(unified, Normalised(), _inputs(6))


def test_vectors_without_a_batch() -> None:
    class FastWeights(nn.Module):
        def forward(self, q, k, v):
            state, outputs = q.new_zeros(q.shape[1], v.shape[1]), []
            for t in range(q.shape[0]):
                state = state - torch.outer(k[t], v[t]) / 2
                outputs.append(q[t] @ state)
            return torch.stack(outputs), state

    inputs = tuple(value[0, 0] for value in _inputs(6))
    unified = itnet.unify(FastWeights(), inputs)
    _node(unified)
    _assert_same(unified, FastWeights(), inputs)


def _each_entry(state, q, k, v, a):
    state = a[..., None, :] * state + k[..., None] * v[..., None, :]
    return state, _read(state, q)


def _no_product(state, q, k, v):
    state = 0.9 * state + (k[..., None] + v[..., None, :])
    return state, _read(state, q)


def _twice(state, q, k, v):
    state = 0.9 * state + k[..., None] * v[..., None, :]
    return state, _read(state, q) + state.sum(-2)


def _diagonal_only(state, q, k, v):
    state = 0.9 * state + k[..., None] * v[..., None, :]
    return state, torch.einsum("bhk,bhkv->bhkv", q, state).amax(-1)


NEAR_MISSES: dict[str, tuple[nn.Module, tuple[str, ...], str]] = {
    "decay of the values": (Loop(_each_entry), ("value",), "the decay is another one for each feature"),
    "no product": (Loop(_no_product), (), "no outer product"),
    "states used": (Loop(_multiplied, states=True), (), "used elsewhere"),
    "states read twice": (Loop(_twice), (), "used elsewhere"),
    "nothing summed": (Loop(_diagonal_only), (), "nothing is summed"),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_what_is_another_recurrence_stays_one(name: str) -> None:
    module, others, reason = NEAR_MISSES[name]
    unified = itnet.unify(module, _inputs(6, *others))
    assert not any(isinstance(node.kernel, ArrangedState) for node in unified.integrals.values())
    assert reason in str(unified.report()) + str(unified.explain(""))
    _assert_same(unified, module, _inputs(6, *others))


def test_sizes_that_coincide() -> None:
    """Heads, steps, keys and values are all 6: nothing is told apart by its size."""
    inputs = tuple(torch.rand(6, 6, 6, 6, dtype=torch.float64) for _ in range(3))
    unified = itnet.unify(Loop(_values_first, final=True, turned=True), inputs)
    _node(unified)
    _assert_same(unified, Loop(_values_first, final=True, turned=True), inputs)


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_other_batches_strides_and_copies(batch: int) -> None:
    module = Loop(_multiplied)
    unified = copy.deepcopy(itnet.unify(module, _inputs(6)))
    inputs = tuple(torch.rand(6, batch, H, width, dtype=torch.float64).permute(1, 2, 0, 3) for width in (K, K, V))
    torch.testing.assert_close(unified(*inputs), module(*inputs))


def test_half_precision_does_not_round_a_number() -> None:
    """0.99 is 0.988 in bfloat16: after 24 steps 2 % of the state would be lost."""

    def step(state, q, k, v):
        state = 0.99 * state + k[..., None] * v[..., None, :]
        return state, _read(state, q)

    inputs = _inputs(24, dtype=torch.bfloat16)
    unified = itnet.unify(Loop(step), inputs)
    _node(unified)
    exact = Loop(step)(*(value.double() for value in inputs))
    assert unified(*inputs).dtype == torch.bfloat16
    assert float((unified(*inputs).double() - exact).norm() / exact.norm()) <= 4e-3


def test_the_result_is_compiled_exported_and_unified_again() -> None:
    module, inputs = Loop(_each_key, final=True), _inputs(6, "key")
    unified = itnet.unify(module, inputs)
    exported = torch.export.export(unified, inputs, strict=False)
    torch.testing.assert_close(exported.module()(*inputs), module(*inputs))
    torch.testing.assert_close(torch.compile(unified, backend="aot_eager")(*inputs), module(*inputs))
    _assert_same(itnet.unify(unified, inputs), module, inputs)
