"""Alias and effect analysis: what may be moved and what may not."""

import inspect

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.capture.export import capture
from itnet_compiler.capture.signature import SignatureReader
from itnet_compiler.passes.effects import Effects, is_random
from itnet_compiler.unified import program_of


def graph_of(model, *inputs):
    call = SignatureReader(inspect.signature(model.forward)).read(inputs, {})
    return capture(model, call).graph


def nodes(graph, text):
    return [node for node in graph.nodes if text in str(node.target)]


class WritesThroughView(nn.Module):
    def forward(self, x):
        y = x * 2
        scores = y @ y.transpose(-2, -1)
        y[:, 0].add_(1.0)
        return scores @ y


def test_a_write_through_a_view_between_the_nodes_is_an_obstacle():
    graph = graph_of(WritesThroughView(), torch.randn(2, 3, 4))
    region = nodes(graph, "matmul")
    assert len(region) == 2
    assert "in place" in Effects(graph).obstacle(region)[0]


def test_a_single_node_has_no_obstacle_unless_it_writes():
    graph = graph_of(WritesThroughView(), torch.randn(2, 3, 4))
    effects = Effects(graph)
    assert effects.obstacle(nodes(graph, "matmul")[:1]) is None
    assert effects.obstacle(nodes(graph, "add_")) is not None


class Stirred(nn.Module):
    """Attention with a write to the queries between the scores and the values."""

    def forward(self, x):
        q = x.clone()
        weights = torch.softmax(torch.bmm(q, x.transpose(-2, -1)), -1)
        x = x.clone()
        q.zero_()
        return torch.bmm(weights, x) + q


def test_in_place_writes_keep_their_order():
    model, x = Stirred().eval(), torch.randn(2, 3, 3)
    unified = itnet.unify(model, x)
    assert torch.equal(model(x), unified(x))
    for entry in program_of(unified).journal.entries:
        assert entry.status != "replaced" or "zero_" not in str(entry.nodes)


def test_buffers_written_in_forward_are_written_once_a_call():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.register_buffer("mean", torch.zeros(4))
            self.conv = nn.Conv1d(4, 4, 3, padding=1)

        def forward(self, x):
            self.calls += 1
            self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2)).detach()
            return self.conv(x) + self.mean[:, None]

    model, x = Counter(), torch.randn(2, 4, 5)
    unified = itnet.unify(model, x, copy=True)
    for _ in range(3):
        assert torch.equal(model(x), unified(x))
    assert torch.equal(model.calls, unified.calls) and torch.equal(model.mean, unified.mean)
    assert int(unified.calls) == 3


@pytest.mark.parametrize(("rate", "train", "random"), [(0.5, True, True), (0.5, False, False), (0.0, True, False)])
def test_dropout_is_random_only_when_it_acts(rate, train, random):
    class Drop(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, rate, train)

    (node,) = nodes(graph_of(Drop(), torch.randn(2, 3)), "dropout")
    assert is_random(node) is random
