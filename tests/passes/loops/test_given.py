"""``torch``'s scan operator becomes the node that a loop over time becomes, at any length."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.utils import _pytree as tree

import itnet
from itnet_compiler.capture.export import capture
from itnet_compiler.capture.signature import SignatureReader
from itnet_compiler.passes.engine import integral_of, roll_loops
from itnet_compiler.passes.verify import Verifier

# The operator is compiled where it runs by itself, which warns.
pytestmark = pytest.mark.filterwarnings("ignore")


def looped(step: Any, init: Any, xs: Any, *, dim: int, reverse: bool = False) -> tuple[Any, Any]:
    """What ``scan`` does, as a loop: alone, the operator is compiled anew for each length."""
    pieces = zip(*(one.unbind(dim) for one in tree.tree_leaves(xs)), strict=True)
    given = [tree.tree_unflatten(list(piece), tree.tree_structure(xs)) for piece in pieces]
    kept = []
    for one in reversed(given) if reverse else given:
        init, out = step(init, one)
        kept.append(out)
    return init, torch.stack(kept[::-1] if reverse else kept, dim)


class Elman(nn.Module):
    def __init__(self, run: Any = scan) -> None:
        super().__init__()
        self.h, self.run = nn.Linear(4, 4), run

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.sin(self.h(h) + x)
            return h, h.clone()

        last, states = self.run(step, x.new_zeros(x.shape[0], 4), x, dim=1)
        return states, last


class Average(nn.Module):
    """Two averages, the second of the first; both are given, and handed on."""

    def __init__(self, run: Any = scan) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def step(carry: tuple[Tensor, Tensor], given: tuple[Tensor, Tensor]) -> Any:
            slow, slower = carry
            x, gate = given
            slow = gate * slow + (1 - gate) * x
            slower = 0.9 * slower + slow
            return (slow, slower), slower * 2

        first = x[:, 0].clone(memory_format=torch.contiguous_format)
        (slow, slower), kept = self.run(step, (first, first.cos()), (x, torch.sigmoid(gate)), dim=1, reverse=True)
        return kept, slow, slower


class Noisy(nn.Module):
    """A step that draws random numbers: what draws is not moved."""

    def forward(self, x: Tensor) -> Tensor:
        def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.dropout(h, 0.5, True) + x
            return h, h.clone()

        return scan(step, torch.zeros_like(x[:, 0]), x, dim=1)[1]


def _check(unified: nn.Module, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    mine, theirs = (tree.tree_leaves(run(*inputs)) for run in (unified, module))
    for found, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    slopes = []
    for run, outs in ((unified, mine), (module, theirs)):
        slopes.append(torch.autograd.grad(sum(out.square().sum() for out in outs), [*inputs, *run.parameters()]))
    for found, wanted in zip(*slopes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_scan_is_rewritten_and_verified() -> None:
    module = Average()
    given = SignatureReader(inspect.signature(module.forward)).read((torch.randn(3, 9, 4), torch.randn(3, 9, 4)), {})
    captured = capture(module, given)
    journal = roll_loops(captured.graph, verifier=Verifier())
    (entry,) = journal.entries
    assert (entry.status, entry.rule) == ("replaced", "reroll")
    found = [integral for node in captured.graph.nodes if (integral := integral_of(node)) is not None]
    assert [integral.origin for integral in found] == ["linear recurrence", "linear recurrence"]
    assert all(integral.verification.status == "verified" for integral in found)
    assert not any("scan" in str(node.target) for node in captured.graph.nodes)


@pytest.mark.exhaustive  # what it compares with is compiled by torch at every size
@pytest.mark.parametrize(
    ("kind", "count", "origins"),
    [
        (Elman, 1, ["loop"]),
        (Average, 2, ["linear recurrence", "linear recurrence"]),
    ],
)
def test_a_scan_is_one_node_of_any_length(kind: type[nn.Module], count: int, origins: list[str]) -> None:
    torch.manual_seed(0)
    module, reference = kind(), kind(looped)
    reference.load_state_dict(module.state_dict())

    def inputs(batch: int, length: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(batch, length, 4, requires_grad=True) for _ in range(count))

    unified = itnet.unify(module, inputs(3, 9))
    assert [node.origin for node in unified.integrals.values()] == origins
    assert all(node.verification.status == "verified" for node in unified.integrals.values())
    for sizes in ((3, 9), (2, 5), (1, 70)):
        _check(unified, reference, inputs(*sizes))
    assert len(unified.report().to_dict()["variants"]) == 1


def test_a_scan_that_draws_is_left_alone() -> None:
    unified = itnet.unify(Noisy(), torch.randn(3, 9, 4))
    assert not unified.integrals
