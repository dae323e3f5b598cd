"""Axis roles: what layers fix, what views carry, and that nothing is concluded from equal sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from itnet_compiler.passes.axes import AxisRole, analyse, invalidate, roles_of
from itnet_compiler.passes.engine import detect
from itnet_compiler.passes.operators import operator_name
from tests.passes.regions import captured

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")  # nn.LSTM under export

LETTERS = {AxisRole.BATCH: "b", AxisRole.POSITION: "p", AxisRole.FEATURE: "f", AxisRole.UNKNOWN: "?"}


class Model(nn.Module):
    """A function of one tensor, with layers that it may use by name."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def letters(node: Node) -> str:
    return "".join(LETTERS[role] for role in roles_of(node))


def returned(graph: Graph) -> list[Node]:
    output = next(node for node in graph.nodes if node.op == "output")
    return [one for one in torch.utils._pytree.tree_leaves(output.args) if isinstance(one, Node)]


def result(function: Callable[..., Any], x: Tensor, **layers: nn.Module) -> str:
    """Roles of what the function returns."""
    return letters(returned(captured(Model(function, **layers), x).graph)[0])


IMAGE, TOKENS, IDS = torch.randn(2, 3, 8, 10), torch.randn(2, 5, 6), torch.randint(7, (2, 5))
CONV, LINEAR, EMBED = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(6, 6), nn.Embedding(7, 6)


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        (lambda m, x: m.conv(x), IMAGE, "bfpp"),
        (lambda m, x: F.max_pool2d(x, 2), IMAGE, "bfpp"),
        (lambda m, x: F.interpolate(m.conv(x), scale_factor=2), IMAGE, "bfpp"),
        (lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 1), IMAGE, "bfpp"),
        (lambda m, x: F.pixel_shuffle(m.conv(x), 2), IMAGE, "bfpp"),
        (lambda m, x: F.unfold(m.conv(x), 3), IMAGE, "bfp"),
        (lambda m, x: F.group_norm(x, 3), IMAGE, "bfpp"),
        (lambda m, x: m.linear(x), TOKENS, "bpf"),
        (lambda m, x: m.linear(x), TOKENS[0], "bf"),
        (lambda m, x: F.layer_norm(x, (6,)), TOKENS, "bpf"),
        (lambda m, x: m.embed(x), IDS, "bpf"),
        (lambda m, x: m.lstm(x)[0], TOKENS, "bpf"),
        (lambda m, x: m.lstm(x)[1][0], TOKENS, "?bf"),
        (lambda m, x: F.scaled_dot_product_attention(x, x, x), TOKENS, "bpf"),
    ],
)
def test_layers_fix_roles(function: Any, inputs: Tensor, expected: str) -> None:
    lstm = nn.LSTM(6, 4, batch_first=True)
    assert result(function, inputs, conv=CONV, linear=LINEAR, embed=EMBED, lstm=lstm) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda y: y.permute(0, 2, 3, 1), "bppf"),
        (lambda y: y.mT, "bfpp"),
        (lambda y: y.movedim(1, -1), "bppf"),
        (lambda y: y.flatten(2), "bfp"),
        (lambda y: y.flatten(2).transpose(1, 2), "bpf"),
        (lambda y: y.flatten(1), "bf"),
        (lambda y: y.reshape(y.shape[0], 2, 2, *y.shape[2:]), "bffpp"),
        (lambda y: y.reshape(y.shape[0] * 4, -1), "bp"),
        (lambda y: y.reshape(y.shape[0] * 4, -1).reshape(y.shape), "bfpp"),
        (lambda y: y.unflatten(2, (2, -1)), "bfppp"),
        (lambda y: y[:, :, 1:], "bfpp"),
        (lambda y: y[:, :, 0], "bfp"),
        (lambda y: y.mean((2, 3), keepdim=True), "bfpp"),
        (lambda y: y.mean((2, 3), keepdim=True).flatten(1), "bf"),
        (lambda y: y.mean((2, 3)), "bf"),
        (lambda y: y.amax(1), "bpp"),
        (lambda y: y[:, :, None], "bf?pp"),
        (lambda y: y[:, :, None].squeeze(2), "bfpp"),
        (lambda y: y.mean((2, 3), keepdim=True).expand_as(y), "bfpp"),
        (lambda y: torch.cat([y, y], 1), "bfpp"),
        (lambda y: torch.stack([y, y]), "?bfpp"),
        (lambda y: y.chunk(2, 1)[0], "bfpp"),
        (lambda y: y.unbind(2)[0], "bfp"),
        (lambda y: F.pad(y, (1, 1)).roll(1, 2), "bfpp"),
        (lambda y: y.repeat(1, 1, 2, 1), "bfpp"),
        (lambda y: y.unfold(2, 2, 2), "bfppp"),
        (lambda y: y[:, torch.tensor([0, 1])], "bfpp"),
        (lambda y: y.sigmoid() * torch.ones(4, 1, 1), "bfpp"),
        (lambda y: torch.fft.fft2(y).real, "bfpp"),
        (lambda y: torch.einsum("bchw,cd->bdhw", y, torch.ones(4, 5)), "bfpp"),
        (lambda y: y.flatten(2) @ y.flatten(2).mT, "bff"),
        (lambda y: y.flatten(2).mT @ y.flatten(2), "bpp"),
        (lambda y: torch.topk(y, 2, 1)[0], "bfpp"),
    ],
)
def test_operators_carry_roles(function: Any, expected: str) -> None:
    assert result(lambda m, x: function(m.conv(x)), IMAGE, conv=CONV) == expected


def test_heads_are_split_and_merged_exactly():
    """Length, heads and head size are all 4: equal sizes lead nowhere."""

    def attention(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        q = m.linear(x).view(x.shape[0], x.shape[1], 4, 4).transpose(1, 2)
        flat = q.reshape(-1, x.shape[1], 4)
        scores = flat @ flat.mT
        merged = (scores @ flat).view(q.shape).transpose(1, 2).reshape(x.shape)
        return q, flat, scores, merged

    graph = captured(Model(attention, linear=nn.Linear(16, 16)), torch.randn(4, 4, 16)).graph
    assert [letters(node) for node in returned(graph)] == ["bfpf", "bpf", "bpp", "bpf"]


@pytest.mark.parametrize("size", [8, 7], ids=["divisible", "padded"])
def test_windows_come_and_go(size: int) -> None:
    """Swin's partition: the windows are counted in the batch, and come back as positions."""

    def windows(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x).permute(0, 2, 3, 1)
        b, h, w, c = y.shape
        y = F.pad(y, (0, 0, 0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4))
        rows, columns = y.shape[1] // 4, y.shape[2] // 4
        cut = y.view(b, rows, 4, columns, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b * rows * columns, 16, c)
        back = cut.view(b, rows, columns, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, rows * 4, columns * 4, c)
        return cut, back

    graph = captured(Model(windows, conv=CONV), torch.randn(2, 3, size, size + 4)).graph
    assert [letters(node) for node in returned(graph)] == ["bpf", "bppf"]


def test_a_view_across_factors_is_unknown():
    assert result(lambda m, x: m.conv(x).view(x.shape[0], 2, 5, 8, 4), torch.randn(2, 3, 8, 10), conv=CONV)[0] == "b"
    fixed = captured(
        Model(lambda m, x: m.linear(x).view(2, 9, 10), linear=LINEAR), torch.randn(2, 15, 6), dynamic=False
    )
    assert letters(returned(fixed.graph)[0]) == "b??"


def test_inputs_learn_from_their_first_consumer():
    graph = captured(
        Model(lambda m, x: m.conv(((x - 0.5) / 2).unsqueeze(1)), conv=nn.Conv1d(1, 4, 3)), torch.randn(2, 9)
    ).graph
    source = next(node for node in graph.nodes if node.op == "placeholder")
    assert letters(source) == "bp"
    assert letters(returned(graph)[0]) == "bfp"


def test_what_nothing_fixes_stays_unknown():
    assert result(lambda m, x: (x * 2).relu(), TOKENS) == "???"
    assert result(lambda m, x: m.linear(x), torch.randn(2, 3, 4, 6), linear=LINEAR) == "???f"


def test_a_contradiction_is_unknown():
    def both(m: Any, x: Tensor) -> Tensor:
        y = m.linear(x)
        return y + y.transpose(1, 2)

    assert result(both, torch.randn(2, 6, 6), linear=LINEAR) == "b??"


def test_token_mixing_leaves_positions():
    assert result(lambda m, x: m.mix(m.linear(x).mT), TOKENS, linear=LINEAR, mix=nn.Linear(5, 7)) == "bfp"
    assert result(lambda m, x: m.mix.weight @ m.linear(x), TOKENS, linear=LINEAR, mix=nn.Linear(5, 7)) == "bpf"


def test_parameters_take_the_roles_of_what_they_are_added_to():
    def add(m: Any, x: Tensor) -> Tensor:
        token = m.token.weight.unsqueeze(0).expand(x.shape[0], -1, -1)
        return torch.cat([token, m.linear(x)], 1)

    assert result(add, TOKENS, linear=LINEAR, token=nn.Embedding(1, 6)) == "bpf"


def test_regions_without_gradients():
    def gated(m: Any, x: Tensor) -> Tensor:
        y = m.linear(x)
        with torch.no_grad():
            scale = y.transpose(1, 2).cos()
        return scale

    graph = captured(Model(gated, linear=LINEAR), TOKENS).graph
    assert [operator_name(node) for node in graph.nodes if node.op == "call_function"] == ["linear", "transpose", "cos"]
    assert letters(returned(graph)[0]) == "bfp"


def test_results_are_kept_until_invalidated():
    graph = captured(Model(lambda m, x: m.linear(x), linear=LINEAR), TOKENS).graph
    node = returned(graph)[0]
    assert letters(node) == "bpf"
    assert roles_of(node) is roles_of(node)
    with graph.inserting_after(node):
        new = graph.call_function(torch.ops.aten.transpose.int, (node, 1, 2))
    new.meta["val"] = node.meta["val"].transpose(1, 2)
    assert letters(new) == "bfp"
    new.args = (node, 0, 1)
    assert letters(new) == "bfp"
    invalidate(graph)
    assert letters(new) == "pbf"


def without_owner(module: GraphModule) -> Graph:
    """The graph as the compiler holds it: on its own."""
    graph, copies = Graph(), {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, lambda old: copies[old])
        copies[node].meta = dict(node.meta)
    return graph


class Everything(nn.Module):
    """Convolution, pooling, attention, recurrence and a reduction, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv2d(3, 8, 3), nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(F.max_pool2d(self.conv(x), 2), scale_factor=2)
        y = y * y.mean((2, 3), keepdim=True)
        y = y.flatten(2).mT
        y = self.lstm(F.scaled_dot_product_attention(y, y, y))[0]
        return y.transpose(1, 2).sum(-1)


def test_integrals_carry_roles_like_what_they_replace():
    graph = without_owner(captured(Everything(), torch.randn(2, 3, 9, 11)))
    before = {node.name: letters(node) for node in graph.nodes}
    detect(graph, verifier=None)
    found = analyse(graph)
    families = {node.meta["integral"].family for node in graph.nodes if "integral" in node.meta}
    assert families == {"stationary", "dense", "softmax", "gated"}
    after = {node.name: "".join(LETTERS[role] for role in found.roles(node)) for node in graph.nodes}
    kept = before.keys() & after.keys()
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_data_are_right_where_a_constant_contradicts_them():
    """A bias computed by layers from a table, as in Swin V2: its leading axes are not features."""

    def biased(m: Any, x: Tensor) -> Tensor:
        y = m.linear(x)
        return y @ y.mT + m.bias(m.table.weight.view(5, 5, 2)).squeeze(-1) + m.square.weight.softmax(-1)

    layers = {"linear": LINEAR, "bias": nn.Linear(2, 1), "table": nn.Embedding(25, 2), "square": nn.Linear(5, 5)}
    fixed = captured(Model(biased, **layers), TOKENS, dynamic=False)
    assert letters(returned(fixed.graph)[0]) == "bpp"
