"""Verification: wrong rewrites are found and rolled back, right ones are checked once."""

import dataclasses

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.capture.export import capture
from itnet_compiler.capture.signature import SignatureReader
from itnet_compiler.ir.domain import Window
from itnet_compiler.lowering.base import Lowered
from itnet_compiler.passes.engine import detect
from itnet_compiler.passes.match import Match, rule
from itnet_compiler.passes.rules import convolution
from itnet_compiler.passes.verify import Verifier, relative_error
from itnet_compiler.unified import program_of


def captured(model, *inputs):
    import inspect

    call = SignatureReader(inspect.signature(model.forward)).read(inputs, {})
    return capture(model, call)


def wrong_rule(change):
    """The convolution rule, with ``change`` applied to the proposal that it makes."""

    @rule("wrong", "aten.conv2d.default")
    def wrong(node, match: Match):
        return change(convolution.convolution.function(node, match))

    return wrong


def off_by_one_padding(proposal):
    window: Window = proposal.spec.domain
    pairs = tuple((low - 1, high + 1) for low, high in window.padding)
    return dataclasses.replace(
        proposal, spec=dataclasses.replace(proposal.spec, domain=dataclasses.replace(window, padding=pairs))
    )


def swapped_operands(proposal):
    operands = dict(proposal.operands)
    operands["bias"] = operands["weight"]
    return dataclasses.replace(proposal, operands=operands)


@pytest.mark.parametrize("change", [off_by_one_padding, swapped_operands])
def test_a_wrong_rewrite_is_rolled_back_and_the_graph_is_as_before(change):
    model, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 8)
    result = captured(model, x)
    before = str(result.graph)
    journal = detect(result.graph, verifier=Verifier(), use_rules=(wrong_rule(change),))
    assert str(result.graph) == before
    (entry,) = journal.entries
    assert entry.status == "rolled back" and entry.reason


def test_a_rewrite_that_only_holds_at_the_example_size_is_rolled_back():
    class Sized(nn.Module):
        def forward(self, x):
            return nn.functional.avg_pool1d(x, 2, stride=2)

    def size_blind(node, match):
        from itnet_compiler.passes.rules.pooling import average_pooling

        return average_pooling.function(node, match)

    result = captured(Sized(), torch.randn(2, 3, 8))
    verifier = Verifier()
    proposal = size_blind(next(n for n in result.graph.nodes if "avg_pool1d" in str(n.target)), Match(None))
    # Right at length 8 only: the last window is computed for length 8 whatever comes.
    lowered = Lowered(("input",), "input[..., :8].unflatten(-1, (-1, 2)).mean(-1)")
    checked = verifier.check(proposal, lowered)
    assert checked.status == "failed" and "other sizes" in checked.note


def test_skipping_is_said():
    unified = itnet.unify(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8), verify=False)
    (node,) = unified.integrals.values()
    assert node.verification.status == "skipped" and node.verification.error is None
    assert program_of(unified).comparison is None


def test_equal_layers_are_checked_once(monkeypatch):
    import itnet_compiler.passes.verify as verify

    calls = []
    real = verify._compare_region
    monkeypatch.setattr(verify, "_compare_region", lambda *a: calls.append(1) or real(*a))
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(12))).eval()
    unified = itnet.unify(model, torch.randn(2, 4, 8, 8))
    assert len(unified.integrals) == 12
    assert len(calls) == 2  # the real and other sizes of one distinct layer


def test_verification_reads_no_weights():
    model = nn.Conv2d(3, 4, 3).eval()
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    unified = itnet.unify(model, torch.randn(2, 3, 8, 8))
    assert unified.integrals["conv2d"].verification.error < 1e-12


def test_verification_leaves_the_random_stream_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()).train()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    itnet.unify(model, torch.zeros(2, 3, 8, 8))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("value", "expected", "error"),
    [
        (torch.ones(3), torch.ones(3), 0.0),
        (torch.ones(3), torch.ones(4), float("inf")),
        (torch.ones(3), torch.ones(3).double(), float("inf")),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), 0.0),
        (torch.tensor([1.0, 0.0]), torch.tensor([1.0, float("nan")]), float("inf")),
        (torch.tensor([float("inf")]), torch.tensor([-float("inf")]), float("inf")),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), float("inf")),
        ((torch.ones(1),), (torch.ones(1), torch.ones(1)), float("inf")),
        (torch.zeros(0), torch.zeros(0), 0.0),
        (torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]), 0.1),
    ],
)
def test_relative_error(value, expected, error):
    assert relative_error(value, expected) == pytest.approx(error)
