"""Every node in its class, with the reason."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import Graph, GraphModule

from itnet_compiler.capture.regions import inline_regions
from itnet_compiler.passes.axes import AxisRole, roles_of
from itnet_compiler.passes.classify import Category, Classification, classify, coverage
from itnet_compiler.passes.engine import detect
from itnet_compiler.passes.operators import operator_name
from tests import foreign

from .regions import captured


class Model(nn.Module):
    """A function of one tensor, after a convolution, a linear layer or an embedding."""

    def __init__(self, first: nn.Module, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.function = first, function
        self.mix, self.heads, self.norm = nn.Linear(5, 7), nn.Linear(4, 4), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.first(x))


IMAGE, TOKENS, IDS = torch.randn(2, 3, 8, 10), torch.randn(2, 5, 6), torch.randint(9, (2, 5))


def of_image(function: Callable[..., Any]) -> GraphModule:
    return captured(Model(nn.Conv2d(3, 4, 3), function), IMAGE)


def of_tokens(function: Callable[..., Any]) -> GraphModule:
    return captured(Model(nn.Linear(6, 4), function), TOKENS)


def of_ids(function: Callable[..., Any]) -> GraphModule:
    return captured(Model(nn.Embedding(9, 4), function), IDS)


def last(module: GraphModule, name: str) -> Classification:
    """Class of the last call of an operator."""
    return [found for node, found in classify(module.graph).items() if operator_name(node) == name][-1]


def attention(m: nn.Module, x: Tensor) -> Tensor:
    return ((x @ x.mT) / 2).softmax(-1) @ x


def soft(m: nn.Module, x: Tensor) -> Tensor:
    e = (x - x.amax(1, keepdim=True)).exp()
    return e / e.sum(1, keepdim=True)


def rms(m: nn.Module, x: Tensor) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


def instance(m: nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.var(1, keepdim=True) + 1e-5).sqrt()


def response(m: nn.Module, x: Tensor) -> Tensor:
    size = x.norm(dim=1, keepdim=True)
    return x * (size / (size.mean(-1, keepdim=True) + 1e-6))


P, R, N, T, U = Category.POINTWISE, Category.REINDEXING, Category.NORMALISATION, Category.ROUTING, Category.UNMATCHED


@pytest.mark.parametrize(
    ("operator", "function", "category", "reason"),
    [
        ("linear", lambda m, x: m.heads(x), P, "linear over features"),
        ("linear", lambda m, x: m.mix(x.mT), U, "linear over the position axis (token mixing)"),
        ("matmul", lambda m, x: m.mix.weight @ x, U, "matmul over the position axis (token mixing)"),
        ("matmul", lambda m, x: x @ m.heads.weight, P, "matmul over features"),
        ("einsum", lambda m, x: torch.einsum("blc,cd->bld", x, m.heads.weight), P, "einsum over features"),
        ("einsum", lambda m, x: torch.einsum("blc,blc->bl", x, x.cos()), P, "product of features"),
        ("einsum", lambda m, x: torch.einsum("blc,kl->bkc", x, m.mix.weight), U, "einsum over the position axis"),
        ("einsum", lambda m, x: torch.einsum("blc,bmc->blm", x, x), U, "for all pairs of positions"),
        ("matmul", attention, U, "matmul between two activations, summed over positions"),
        ("softmax", attention, U, "softmax over a position axis"),
        ("matmul", lambda m, x: x.mean(1) @ x.mean(1).mT, U, "for all pairs of samples"),
        ("softmax", lambda m, x: x.softmax(-1), P, "softmax over features"),
        ("sum", lambda m, x: x.sum(-1), P, "sum over features"),
        ("sum", lambda m, x: x.sum(1), U, "sum over a position axis"),
        ("sum", lambda m, x: x.sum(0), U, "sum over the batch axis"),
        ("sum", lambda m, x: x.sum(), U, "sum over a position axis"),
        ("std", lambda m, x: x.std(1), U, "std over a position axis"),
        ("max", lambda m, x: x.max(1)[0], U, "max over a position axis"),
        ("max", lambda m, x: torch.max(x, x.cos()), P, "elementwise"),
        ("cumsum", lambda m, x: x.cumsum(1), U, "cumsum over a position axis"),
        ("cumsum", lambda m, x: x.cumsum(2), P, "cumsum over features"),
        ("sum", soft, U, "sum of a written-out softmax over a position axis"),
        ("amax", soft, U, "amax of a written-out softmax over a position axis"),
        ("mean", rms, N, "mean that the values are normalised by"),
        ("mean", instance, N, "mean that the values are normalised by"),
        ("var", instance, N, "var that the values are normalised by"),
        ("mean", lambda m, x: rms(m, x.view(-1, 10, 4)), N, "mean that the values are normalised by"),
        ("sum", lambda m, x: soft(m, x.reshape(-1, 10, 4)), U, "sum over an axis of unknown role"),
        ("mse_loss", lambda m, x: F.mse_loss(x, x.cos()), Category.SUPPORT, "a loss"),
        ("linalg_vector_norm", response, N, "linalg_vector_norm that the values are normalised by"),
        ("linalg_vector_norm", lambda m, x: F.normalize(x, dim=-1), N, "linalg_vector_norm that"),
        ("layer_norm", lambda m, x: F.layer_norm(x, (4,)), N, "normalisation layer"),
        ("group_norm", lambda m, x: m.norm(x.mT), N, "normalisation layer"),
        ("view", lambda m, x: x.view(-1, 2, 2), R, "moves values"),
        ("cat", lambda m, x: torch.cat([x, x], 1), R, "moves values"),
        ("roll", lambda m, x: x.roll(1, 1), R, "moves values"),
        ("getitem", lambda m, x: x.chunk(2, 1)[0], R, "one of several results"),
        ("index", lambda m, x: x[:, torch.tensor([2, 0, 1])], R, "moves values between fixed places"),
        ("index", lambda m, x: x[:, x.argmax(1)[0]], T, "index at places that depend on the input"),
        ("argmax", lambda m, x: x.argmax(1), T, "what goes where depends on the values"),
        ("topk", lambda m, x: x.topk(2, 1)[0], T, "what goes where depends on the values"),
        ("cumsum", lambda m, x: (x > 0).long().cumsum(1), T, "counts and offsets"),
        ("dropout", lambda m, x: F.dropout(x, 0.1), P, "elementwise"),
        ("add", lambda m, x: x.add_(1), P, "elementwise"),
        ("fft_rfft", lambda m, x: torch.fft.rfft(x, dim=1), U, "fft_rfft over a position axis"),
        ("linalg_inv", lambda m, x: torch.linalg.inv(x.mT @ x), U, "no rule knows aten.linalg_inv"),
        ("cos", lambda m, x: x.new_zeros(3).cos() + x[..., :3], Category.SUPPORT, "does not depend on activations"),
        ("zeros_like", lambda m, x: torch.zeros_like(x) + x, Category.SUPPORT, "a constant, but for its size"),
        ("sym_size", lambda m, x: x.reshape(x.shape[0] * 2, -1), Category.SUPPORT, "sizes and checks"),
    ],
)
def test_operators_on_tokens(operator: str, function: Any, category: Category, reason: str) -> None:
    found = last(of_tokens(function), operator)
    assert (found.category, reason in found.reason) == (category, True), found


@pytest.mark.parametrize(
    ("operator", "function", "category"),
    [
        ("conv2d", lambda m, x: x, U),
        ("avg_pool2d", lambda m, x: F.avg_pool2d(x, 2), U),
        ("upsample_nearest2d", lambda m, x: F.interpolate(x, scale_factor=2), U),
        ("pixel_shuffle", lambda m, x: F.pixel_shuffle(x, 2), R),
        ("im2col", lambda m, x: F.unfold(x, 2), R),
        ("col2im", lambda m, x: F.fold(F.unfold(x, 2), (6, 8), 2), U),
        ("linear", lambda m, x: m.heads(x.flatten(1)[:, :4]), P),
        ("linear", lambda m, x: m.heads(x.permute(0, 2, 3, 1)), P),
        ("mean", lambda m, x: x.mean((2, 3)), U),
        ("mean", lambda m, x: x.mean(1), P),
    ],
)
def test_operators_on_images(operator: str, function: Any, category: Category) -> None:
    assert last(of_image(function), operator).category is category


def test_masks_and_positions_are_support():
    def masked(m: nn.Module, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        allowed = places[None] <= places[:, None]
        return x + allowed.to(x.dtype).sum(-1, keepdim=True)

    module = of_ids(masked)
    classes = {operator_name(node): found.category for node, found in classify(module.graph).items()}
    assert classes["le"] is classes["sum"] is classes["arange"] is Category.SUPPORT
    assert classes["embedding"] is classes["add"] is Category.POINTWISE


def test_a_buffer_that_activations_are_written_into_is_one():
    def fill(m: nn.Module, x: Tensor) -> Tensor:
        store = torch.zeros(2, 7, 4)
        store[:, 1:6].copy_(x)
        return store.cumsum(1)

    assert last(captured(Model(nn.Linear(6, 4), fill), TOKENS, dynamic=False), "cumsum").category is U


def test_regions_without_gradients_are_looked_into():
    def wrapped(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            easy = x.cos().mT
        with torch.no_grad():
            hard = x.cumsum(1)
        return easy, hard + 1

    found = {operator_name(node): entry for node, entry in classify(of_tokens(wrapped).graph).items()}
    assert [found[name].category for name in ("cos", "mT", "cumsum")] == [P, R, U]
    assert found["cumsum"].reason == "cumsum over a position axis"


def alone_of(module: GraphModule) -> Graph:
    """The graph as the compiler holds it: without its module."""
    graph, copies = Graph(), {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, lambda old: copies[old])
        copies[node].meta = dict(node.meta)
    return graph


def test_coverage():
    def one(category: Category, mixing: bool = True) -> Classification:
        return Classification(category, "", mixing)

    graph = Graph()
    nodes = [graph.placeholder(f"x{index}") for index in range(6)]
    found = [one(Category.INTEGRAL)] * 3 + [one(U), one(U, mixing=False), one(P)]
    assert coverage(dict(zip(nodes, found, strict=True))) == 0.75
    assert coverage({nodes[0]: one(P)}) == 1.0
    assert coverage({}) == 1.0


def test_coverage_after_detection():
    graph = alone_of(of_image(lambda m, x: F.avg_pool2d(x, 2).mean((2, 3), keepdim=True) * x.cumprod(2)))
    assert coverage(classify(graph)) == 0.0
    detect(graph, verifier=None)
    assert coverage(classify(graph)) == 0.75


def export(name: str) -> GraphModule:
    """A foreign network as a graph, every size dynamic where it can be."""
    model, args, kwargs = foreign.build(name)
    given = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
    shapes = {
        role: dict.fromkeys(range(value.dim()), Dim.AUTO) if isinstance(value, Tensor) else None
        for role, value in given.items()
    }
    module = torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=shapes).module()
    inline_regions(module)
    return module


@pytest.mark.foreign
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "bert", "t5", "clip", "wav2vec2"])
def test_foreign_networks(name: str) -> None:
    """Nothing that mixes positions is left over, and every linear layer is known to sum over features."""
    if not foreign.available(foreign.group_of(name)):
        pytest.skip(f"{foreign.group_of(name)} is not installed")
    module = export(name)
    graph = alone_of(module)
    detect(graph, verifier=None)
    classes = classify(graph)
    assert list(classes) == list(graph.nodes)
    assert {node.name: found.reason for node, found in classes.items() if found.category is U and found.mixing} == {}
    assert coverage(classes) == 1.0
    assert all(found.reason for found in classes.values())
    sources = [node.args[0] for node in graph.nodes if node.op == "call_function" and operator_name(node) == "linear"]
    assert all(roles_of(source)[-1] is AxisRole.FEATURE for source in sources)
