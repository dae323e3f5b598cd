"""The fused operator, with every argument it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itnet_compiler.ir.domain import Keys
from itnet_compiler.ir.softmax import Softmax
from itnet_compiler.passes.rules.attention import attention
from tests.passes.regions import captured, check_region, propose_one, refusals


class Attend(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(2 * q, k, v, mask, **self.settings)


def _inputs(*lead: int, queries: int = 5, keys: int = 7, key_lead: tuple[int, ...] = ()) -> list[Tensor]:
    key_lead = key_lead or lead
    return [
        torch.randn(*lead, queries, 8),
        torch.randn(*key_lead, keys, 8),
        torch.randn(*key_lead, keys, 6),
    ]


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 4, 3)], ids=str)
def test_ranks(lead: tuple[int, ...]) -> None:
    inputs = _inputs(*lead)
    graph = captured(Attend(), *inputs)
    proposal = propose_one(graph, attention)
    assert proposal.spec.kernel == Softmax()
    assert proposal.spec.domain == Keys()
    assert proposal.spec.operands == ("query", "key", "value")
    check_region(graph, proposal, *inputs)


@pytest.mark.parametrize(
    ("settings", "kernel", "domain"),
    [
        ({"is_causal": True}, Softmax(), Keys(causal=True)),
        ({"scale": 0.3}, Softmax(scale=0.3), Keys()),
        ({"dropout_p": 0.4}, Softmax(dropout=0.4), Keys()),
    ],
    ids=str,
)
def test_arguments(settings: dict[str, Any], kernel: Softmax, domain: Keys) -> None:
    inputs = _inputs(2, 3)
    graph = captured(Attend(**settings), *inputs)
    proposal = propose_one(graph, attention)
    assert (proposal.spec.kernel, proposal.spec.domain) == (kernel, domain)
    check_region(graph, proposal, *inputs, definition=not kernel.dropout)


def test_grouped_heads() -> None:
    inputs = _inputs(2, 6, key_lead=(2, 3))
    graph = captured(Attend(enable_gqa=True), *inputs)
    proposal = propose_one(graph, attention)
    assert proposal.spec.kernel == Softmax(grouped=True)
    check_region(graph, proposal, *inputs)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (2, 1, 5, 7), (3, 5, 7)], ids=str)
def test_masks(kind: str, shape: tuple[int, ...]) -> None:
    inputs = _inputs(2, 3)
    mask = torch.rand(shape) < 0.7 if kind == "bool" else torch.randn(shape)
    graph = captured(Attend(), *inputs, mask)
    proposal = propose_one(graph, attention)
    assert proposal.spec.operands == ("query", "key", "value", "mask")
    check_region(graph, proposal, *inputs, mask)


def test_dropout_is_what_runs() -> None:
    """In eval mode nn.MultiheadAttention passes a probability of 0."""
    x = torch.randn(2, 5, 8)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    block = Block()
    assert propose_one(captured(block, x), attention).spec.kernel.dropout == pytest.approx(0.3)
    assert propose_one(captured(block.eval(), x), attention).spec.kernel.dropout == 0.0


def test_mask_and_causal_at_once_are_refused() -> None:
    q = torch.randn(2, 3, 5, 8)
    graph = captured(Attend(is_causal=True), q, q, q, torch.randn(5, 5))
    assert "mask and is_causal" in refusals(graph, attention)[0]
