"""Operations and bytes of single nodes, against torch's own counter and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils.flop_counter import FlopCounterMode

from itnet_compiler.ir.kernel import Work
from itnet_compiler.passes.engine import detect
from itnet_compiler.passes.operators import operator_name
from itnet_compiler.passes.work import concrete, node_work

from .regions import captured


class Model(nn.Module):
    """A function of one tensor and two weights."""

    def __init__(self, function: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.weights)


def graph_of(function: Callable[..., Any], x: Tensor, *shapes: tuple[int, ...]) -> Graph:
    return captured(Model(function, *shapes), x).graph


def work_of(name: str, function: Callable[..., Any], x: Tensor, *shapes: tuple[int, ...]) -> Work:
    """Work of the only call of an operator."""
    found = [node for node in graph_of(function, x, *shapes).nodes if operator_name(node) == name]
    assert len(found) == 1
    return node_work(found[0])


X = torch.randn(2, 5, 6)
IMAGE = torch.randn(2, 4, 7, 9)


@pytest.mark.parametrize(
    ("name", "function", "x", "shapes"),
    [
        ("linear", lambda x, w: F.linear(x, w), X, [(3, 6)]),
        ("matmul", lambda x: x @ x.mT, X, []),
        ("bmm", lambda x: torch.bmm(x, x.mT), X, []),
        ("addmm", lambda x, b, w: torch.addmm(b, x[0], w), X, [(3,), (6, 3)]),
        ("baddbmm", lambda x, b, w: torch.baddbmm(b, x, w), X, [(2, 5, 3), (2, 6, 3)]),
        ("einsum", lambda x, w: torch.einsum("...lc,cd->...ld", x, w), X, [(6, 3)]),
        ("conv2d", lambda x, w: F.conv2d(x, w, padding=1, groups=2), IMAGE, [(6, 2, 3, 3)]),
        ("conv_transpose2d", lambda x, w: F.conv_transpose2d(x, w, stride=2), IMAGE, [(4, 3, 3, 3)]),
    ],
)
def test_products_agree_with_torch(name: str, function: Any, x: Tensor, shapes: list[tuple[int, ...]]) -> None:
    counted = FlopCounterMode(display=False)
    with counted:
        Model(function, *shapes)(x)
    addend = Model(function, *shapes)(x).numel() if "add" in name else 0  # torch counts none for the addition
    assert work_of(name, function, x, *shapes).flops == counted.get_total_flops() + addend


@pytest.mark.parametrize(
    ("name", "function", "x", "flops", "moved"),
    [
        ("relu", lambda x: x.relu(), X, 60, 4 * 120),
        ("add", lambda x: x + 1, X, 60, 4 * 120),
        ("where", lambda x: torch.where(x > 0, x, 0.0), X, 60, 60 + 4 * 120),
        ("layer_norm", lambda x: F.layer_norm(x, (6,)), X, 300, 4 * 120),
        ("softmax", lambda x: x.softmax(-1), X, 300, 4 * 120),
        ("sum", lambda x: x.sum(-1), X, 60, 4 * 70),
        ("var", lambda x: x.var(-1), X, 180, 4 * 70),
        ("view", lambda x: x.view(x.shape[0], -1), X, 0, 0),
        ("transpose", lambda x: x.transpose(0, 1), X, 0, 0),
        ("select", lambda x: x[0], X, 0, 0),
        ("clone", lambda x: x.clone(), X, 0, 4 * 120),
        ("cat", lambda x: torch.cat([x, x[:, :2]], 1), X, 0, 4 * (60 + 24 + 84)),
        ("to", lambda x: x.double() + 1, X, 0, 4 * 60 + 8 * 60),
        ("to", lambda x: x.float() + 1, X, 0, 0),
        ("dropout", lambda x: F.dropout(x, 0.5, training=False), X, 0, 0),
        ("dropout", lambda x: F.dropout(x, 0.5), X, 60, 4 * 120),
        ("avg_pool2d", lambda x: F.avg_pool2d(x, (2, 3)), IMAGE, 6 * 2 * 4 * 3 * 3, 4 * (504 + 72)),
        ("max_pool2d", lambda x: F.max_pool2d(x, 2), IMAGE, 4 * 2 * 4 * 3 * 4, 4 * (504 + 96)),
        ("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1), IMAGE, 504, 4 * (504 + 8)),
        ("scaled_dot_product_attention", lambda x: F.scaled_dot_product_attention(x, x, x), X, 50 * 29, 4 * 120),
        ("upsample_bilinear2d", lambda x: F.interpolate(x, (4, 4), mode="bilinear"), IMAGE, 8 * 128, 4 * (504 + 128)),
        ("sym_size", lambda x: x.view(x.shape[0], -1), X, 0, 0),
        ("zeros_like", lambda x: torch.zeros_like(x) + x, X, 0, 4 * 60),
    ],
)  # fmt: skip
def test_other_operators(name: str, function: Any, x: Tensor, flops: int, moved: int) -> None:
    assert work_of(name, function, x) == Work(flops, moved)


def test_a_table_is_not_read_whole():
    ids = torch.randint(100, (2, 5))
    found = work_of("embedding", lambda x, table: F.embedding(x, table), ids, (100, 6))
    assert found == Work(0, 8 * 10 + 2 * 4 * 60)


@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")
def test_recurrence():
    module = captured(nn.LSTM(6, 3, batch_first=True), X)
    node = next(node for node in module.graph.nodes if operator_name(node) == "lstm")
    assert node_work(node).flops == 2 * 10 * (12 * 6 + 12 * 3)


def test_symbolic_sizes_count_as_in_the_example():
    graph = graph_of(lambda x: x.reshape(x.shape[0] * x.shape[1], -1).relu(), X)
    node = next(node for node in graph.nodes if operator_name(node) == "relu")
    assert concrete(node.meta["val"].shape) == (10, 6)
    assert all(type(size) is int for size in concrete(node.meta["val"].shape))
    assert concrete((3, 4)) == (3, 4)


def test_integrals_know_their_own_work():
    graph = Graph()
    copies: dict[Any, Any] = {}
    for node in graph_of(lambda x, w: F.conv2d(x, w), IMAGE, (3, 4, 2, 2)).nodes:
        copies[node] = graph.node_copy(node, lambda old: copies[old])
        copies[node].meta = dict(node.meta)
    detect(graph, verifier=None)
    node = next(node for node in graph.nodes if "integral" in node.meta)
    with pytest.raises(ValueError, match="is an integral"):
        node_work(node)


def test_every_node_of_a_network_has_a_cost():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 35, 5))
    module = captured(model.eval(), IMAGE)
    total = sum((node_work(node) for node in module.graph.nodes), Work(0, 0))
    assert total.flops == 2 * 560 * 36 + 560 + 5 * 560 + 560 + 2 * 2 * 280 * 5 + 10
    assert total.bytes > 0
