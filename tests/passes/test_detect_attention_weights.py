"""Attention written out: what is accepted runs bit-equal; near misses are refused with their reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itnet_compiler.ir.softmax import Softmax
from itnet_compiler.passes.detect_attention_weights import attention_written_out
from itnet_compiler.passes.engine import detect
from itnet_compiler.passes.match import op_name

from .regions import captured, check_region, propose_one, refusals


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
        given = (2 * q, 3 * k, v + 1)
        return self.function(*given) if mask is None else self.function(*given, mask)


def _inputs(*lead: int, queries: int = 5, keys: int = 7) -> list[Tensor]:
    return [torch.randn(*lead, queries, 4), torch.randn(*lead, keys, 4), torch.randn(*lead, keys, 6)]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), 2), v)


def permuted_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.permute(0, 2, 1)).softmax(-1) @ v


def scaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.mT * 0.3 + mask).softmax(-1) @ v


def divided(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (mask + q @ k.mT / 1.7).softmax(-1) @ v


def accumulated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.bmm(torch.baddbmm(mask, q, k.mT, alpha=0.5).softmax(-1), v)


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = F.dropout((q @ k.mT).softmax(-1), 0.4)
    return weights @ v, weights


def not_dropped(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = F.dropout((q @ k.mT).softmax(-1), 0.4, training=False)
    return weights @ v, weights.mean(0)


MATMUL, BMM = Softmax(1.0, form="matmul"), Softmax(1.0, form="bmm")


@pytest.mark.parametrize(
    ("function", "lead", "mask", "kernel"),
    [
        (plain, (3,), (), MATMUL),
        (plain, (), (), MATMUL),
        (plain, (2, 3), (), MATMUL),
        (plain, (2, 4, 3), (), MATMUL),
        (batched, (3,), (), BMM),
        (permuted_keys, (3,), (), MATMUL),
        (scaled, (2, 3), (2, 1, 5, 7), Softmax(0.3, form="matmul")),
        (divided, (3,), (5, 7), Softmax(1.0, form="matmul", divisor=1.7)),
        (accumulated, (3,), (1, 5, 7), Softmax(0.5, form="bmm")),
        (dropped, (3,), (), Softmax(1.0, 0.4, returns_weights=True, form="matmul")),
        (not_dropped, (3,), (), Softmax(1.0, returns_weights=True, form="matmul")),
    ],
)
def test_accepted(function: Any, lead: tuple[int, ...], mask: tuple[int, ...], kernel: Softmax) -> None:
    inputs = [*_inputs(*lead), *([torch.randn(mask)] if mask else [])]
    graph = captured(Function(function), *inputs)
    proposal = propose_one(graph, attention_written_out)
    assert proposal.spec.kernel == kernel
    assert ("mask" in proposal.spec.operands) == bool(mask)
    check_region(graph, proposal, *inputs, definition=not kernel.dropout)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("average", [False, True])
def test_multi_head_attention(train: bool, masked: bool, average: bool) -> None:
    """Every form of F.multi_head_attention_forward(need_weights=True); the weights are the second output."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)

        def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Any:
            return self.attention(x, y, y, attn_mask=mask, average_attn_weights=average)

    inputs = [torch.randn(3, 5, 8), torch.randn(3, 7, 8), *([torch.randn(5, 7)] if masked else [])]
    graph = captured(Block().train(train), *inputs)
    proposal = propose_one(graph, attention_written_out)
    expected = Softmax(1.0, 0.3 if train else 0.0, returns_weights=True, form="bmm")
    assert proposal.spec.kernel == expected
    assert [op_name(node) for node in proposal.outputs][1] == ("aten.dropout.default" if train else "aten.softmax.int")
    check_region(graph, proposal, *inputs, definition=not train)


def test_unused_weights_are_no_output() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    graph = captured(Block(), torch.randn(5, 3, 8))
    graph.graph.eliminate_dead_code()
    proposal = propose_one(graph, attention_written_out)
    assert proposal.spec.kernel == BMM
    assert len(proposal.outputs) == 1


def _reused_scores(q: Tensor, k: Tensor, v: Tensor) -> Any:
    scores = q @ k.mT
    return scores.softmax(-1) @ v, scores


def _reused_before_dropout(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = (q @ k.mT).softmax(-1)
    return F.dropout(weights, 0.4) @ v, weights


def _shared_transposition(q: Tensor, k: Tensor, v: Tensor) -> Any:
    turned = k.mT
    return (q @ turned).softmax(-1) @ v, turned.sum()


def _value_of_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).softmax(-1)
    return weights @ (v * weights.sum())


def _two_values(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = (q @ k.mT).softmax(-1)
    return weights @ v, weights @ v.sin()


def _square(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1)


# Sizes are equal throughout, so that nothing but the structure tells a near miss from the real thing.
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda q, k, v: (q @ k.mT).softmax(-2) @ v, "softmax over axis -2"),
        (lambda q, k, v: (q @ k).softmax(-1) @ v, "keys come from aten.mul.Tensor"),
        (lambda q, k, v: (q @ k.transpose(-3, -1)).softmax(-1) @ v, r"axes \[1, 3\] of the keys change places"),
        (lambda q, k, v: (q @ k.transpose(-3, -2)).softmax(-1) @ v, r"axes \[1, 2\] of the keys change places"),
        (lambda q, k, v: (q @ k.permute(1, 0, 3, 2)).softmax(-1) @ v, "permuted to"),
        (lambda q, k, v: (q @ k.permute(0, 3, 2, 1)).softmax(-1) @ v, "permuted to"),
        (lambda q, k, v: (k.mT @ q).softmax(-1) @ v, "keys come from aten.mul.Tensor"),
        (lambda q, k, v: v @ (q @ k.mT).softmax(-1), "no product has the result of aten.softmax.int"),
        (lambda q, k, v: (q @ k.mT).softmax(-1).mT @ v, "no product has the result of aten.softmax.int"),
        (lambda q, k, v: (q @ k.mT).softmax(-1).view(16, 4, 4) @ v[0, 0], "no product has the result"),
        (lambda q, k, v: (q @ k.mT).softmax(-1) * v, "no product has the result"),
        (lambda q, k, v: (q @ k.mT).view(4, 4, 4, 4).softmax(-1) @ v, "scores come from aten.view"),
        (lambda q, k, v: (q @ k.mT).tanh().softmax(-1) @ v, "scores come from aten.tanh"),
        (lambda q, k, v: (q @ k.mT).softmax(-1, dtype=torch.float64) @ v.double(), "changes the dtype"),
        (lambda q, k, v: (q @ k.mT + 1.0).softmax(-1) @ v, "a number is added"),
        (lambda q, k, v: (q @ k.mT * v).softmax(-1) @ v, "multiplied by something else than a number"),
        (lambda q, k, v: torch.add(q @ k.mT, v, alpha=2).softmax(-1) @ v, "mask is scaled"),
        (lambda q, k, v: (q @ k.mT + (v > 0)).softmax(-1) @ v, "mask of torch.bool"),
        (lambda q, k, v: (q @ k.mT + v[None]).softmax(-1) @ v, "mask widens the scores"),
        (lambda q, k, v: (v + k).softmax(-1) @ v, "neither side of the sum"),
        (lambda q, k, v: (lambda s: (s + s).softmax(-1) @ v)(q @ k.mT), "mask is part of the attention"),
        (lambda q, k, v: (lambda w: w @ w)((q @ k.mT).softmax(-1)), "value is part of the attention"),
        (_reused_scores, "are used elsewhere too"),
        (_reused_before_dropout, "before dropout are used elsewhere"),
        (_shared_transposition, "transposed keys are used elsewhere too"),
        (_two_values, "multiply 2 values"),
        (_square, "no product has the result"),
    ],
)
def test_near_misses(function: Any, reason: str) -> None:
    graph = captured(Function(function), *(torch.randn(4, 4, 4, 4) for _ in range(3)), dynamic=False)
    (given,) = refusals(graph, attention_written_out)
    assert re.search(reason, given), given


def test_accumulator_that_is_scaled() -> None:
    def scaled_accumulator(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return torch.bmm(torch.baddbmm(mask, q, k.mT, beta=0.5).softmax(-1), v)

    graph = captured(Function(scaled_accumulator), *_inputs(3), torch.randn(3, 5, 7))
    assert refusals(graph, attention_written_out) == ["the accumulator of the baddbmm is scaled"]


def test_value_that_depends_on_the_weights_is_not_replaced() -> None:
    """The rule does not look that far; the driver sees that the region would need its own result."""
    graph = captured(Function(_value_of_weights), *_inputs(3)).graph
    journal = detect(graph, verifier=None, use_rules=(attention_written_out,))
    assert [entry.status for entry in journal.entries] == ["rolled back"]
    assert "needs a result of the region" in journal.entries[0].reason
