"""A capture takes the native fast paths of torch's transformer layers exactly where eager code takes them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from itnet_compiler.capture.clone import shallow_clone
from itnet_compiler.capture.export import Capture, capture
from itnet_compiler.capture.fast_paths import FAST_LAYERS, open_fast_paths
from itnet_compiler.capture.signature import SignatureReader

NATIVE = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
X = torch.randn(3, 5, 12)
PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])


def _layer(**settings: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(12, 2, 20, **({"batch_first": True} | settings)).eval()


class Attend(nn.Module):
    """Self-attention with what is given, or attention to something else."""

    def __init__(self, heads: int = 2, cross: bool = False, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, heads, **({"batch_first": True} | settings))
        self.cross = cross

    def forward(self, x: Tensor, mask: Tensor | None = None, padding: Tensor | None = None) -> Any:
        y = 2 * x if self.cross else x
        return self.attention(x, y, y, attn_mask=mask, key_padding_mask=padding)


class Inside(nn.Module):
    """A layer that is used without gradients, whatever the caller has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = _layer()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.layer(x)
        return self.layer(x) + y


def _frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def _half_frozen() -> nn.Module:
    model = nn.TransformerEncoder(_layer(), 2).eval()
    model.layers[0].requires_grad_(False)
    return model


def _uneven() -> nn.Module:
    model = _layer()
    model.norm2.eps = 1e-3
    return model


@contextlib.contextmanager
def _shut() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


# What runs eagerly and in a capture, with an input; True where at least one native operator is to be seen.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], Any, bool]] = {
    "layer": (_layer, (X,), torch.no_grad, True),
    "layer, inference mode": (_layer, (X,), torch.inference_mode, True),
    "layer, gradients": (_layer, (X,), torch.enable_grad, False),
    "layer, training": (lambda: _layer().train(), (X,), torch.no_grad, False),
    "layer, sequence first": (lambda: _layer(batch_first=False), (X,), torch.no_grad, False),
    "layer, no batch": (_layer, (X[0],), torch.no_grad, False),
    "layer, no bias": (lambda: _layer(bias=False), (X,), torch.no_grad, False),
    "layer, odd heads": (
        lambda: nn.TransformerEncoderLayer(12, 3, 20, batch_first=True).eval(),
        (X,),
        torch.no_grad,
        0,
    ),
    "layer, other activation": (lambda: _layer(activation=torch.tanh), (X,), torch.no_grad, True),
    "layer, uneven norms": (_uneven, (X,), torch.no_grad, True),
    "layer, padding": (_layer, (X, torch.zeros(5, 5).bool(), PADDED), torch.no_grad, True),
    "layer, default device": (_layer, (X,), lambda: torch.device("cpu"), False),
    "layer, shut": (_layer, (X,), _shut, False),
    "layer, autocast": (_layer, (X,), lambda: torch.autocast("cpu", torch.bfloat16), True),
    "frozen layer": (lambda: _frozen(_layer()), (X,), torch.enable_grad, True),
    "frozen layer, trainable input": (
        lambda: _frozen(_layer()),
        (X.clone().requires_grad_(),),
        torch.enable_grad,
        False,
    ),
    "frozen layer, one trainable input": (
        lambda: _frozen(_layer()),
        (X[:1].clone().requires_grad_(),),
        torch.enable_grad,
        False,
    ),
    "frozen layer before another": (_half_frozen, (X,), torch.enable_grad, True),
    "attention": (Attend, (X,), torch.no_grad, True),
    "attention, one sample": (Attend, (X[:1],), torch.no_grad, True),
    "attention, gradients": (Attend, (X,), torch.enable_grad, False),
    "attention, mask": (Attend, (X, torch.zeros(5, 5).bool(), PADDED), torch.no_grad, True),
    "attention, float mask": (Attend, (X, torch.zeros(5, 5)), torch.no_grad, False),
    "attention, to others": (lambda: Attend(cross=True), (X,), torch.no_grad, False),
    "attention, odd heads": (lambda: Attend(3), (X,), torch.no_grad, False),
    "attention, other keys": (lambda: Attend(kdim=12, vdim=12, add_zero_attn=True), (X,), torch.no_grad, False),
    "attention, bias of keys": (lambda: Attend(add_bias_kv=True), (X,), torch.no_grad, False),
    "no_grad inside": (Inside, (X,), torch.enable_grad, True),
}


def _capture(model: nn.Module, *inputs: Any, grad: bool) -> Capture:
    return capture(model, SignatureReader(inspect.signature(model.forward)).read(inputs, {}), grad=grad)


def _operators(found: Capture) -> list[str]:
    """Native operators of a graph, those in its blocks included."""
    names: list[str] = []
    for node in found.graph.nodes:
        if node.op == "get_attr" and isinstance(block := found.constants.get(str(node.target)), torch.fx.GraphModule):
            names += [str(inner.target) for inner in block.graph.nodes]
        names.append(str(node.target))
    return [name.split(".")[1] for name in names if any(native in name for native in NATIVE)]


@pytest.mark.parametrize("case", CASES)
def test_as_in_eager_code(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, inputs, context, expected = CASES[case]
    model = build() if "training" in case else build().eval()
    seen: list[str] = []

    def spy(name: str, original: Any, *arguments: Any) -> Any:
        seen.append(name)
        return original(*arguments)

    for name in NATIVE:
        monkeypatch.setattr(torch, name, partial(spy, name, getattr(torch, name)))
    gradients = context not in (_shut,) and "default device" not in case and "autocast" not in case
    with contextlib.nullcontext() if gradients else torch.no_grad(), context():
        model(*inputs)
        monkeypatch.undo()
        found = _capture(model, *inputs, grad=torch.is_grad_enabled())
    assert sorted(_operators(found)) == sorted(seen)
    assert bool(seen) == bool(expected)


def test_a_capture_without_gradients_may_be_made_where_there_are_some() -> None:
    assert _operators(_capture(_layer(), X, grad=False)) == [NATIVE[1]]
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert _operators(_capture(_layer(), X, grad=True)) == []
        assert not torch.is_grad_enabled()


def test_no_weights_are_none_and_not_an_empty_tensor() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y, weights = self.attention(x, x, x, need_weights=False)
            return y if weights is None else y + 1

    found = _capture(Model().eval(), X, grad=False)
    assert [str(node.target) for node in found.graph.nodes if "add" in str(node.target)] == []


def test_an_encoder_that_may_use_nested_tensors_is_reported() -> None:
    encoder = nn.TransformerEncoder(_layer(), 2).eval()
    assert not _capture(encoder, X, grad=False).refused
    call = SignatureReader(inspect.signature(encoder.forward)).read(
        (X,), {"src_key_padding_mask": torch.zeros(3, 5).bool()}
    )
    assert "for the model: without gradients nn.TransformerEncoder zeroes" in capture(encoder, call, grad=False).refused
    assert not capture(encoder, call, grad=True).refused
    assert capture(_frozen(encoder), call, grad=True).refused
    assert encoder.use_nested_tensor, "the model itself is left alone"
    plain = nn.TransformerEncoder(_layer(), 2, enable_nested_tensor=False).eval()
    assert not capture(plain, call, grad=False).refused


class Tagged(nn.TransformerEncoderLayer):
    """A user's own layer on top of torch's."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args, **kwargs) + 1


def test_layers_derived_from_those_of_torch() -> None:
    model = Tagged(12, 2, 20, batch_first=True).eval()
    found = _capture(nn.Sequential(model), X, grad=False)
    assert _operators(found) == [NATIVE[1]]
    node = next(node for node in found.graph.nodes if NATIVE[1] in str(node.target))
    assert [kind for _, kind in node.meta["nn_module_stack"].values()][-1] == f"{__name__}.Tagged"


def test_only_the_throw_away_clone_is_changed() -> None:
    """Other threads, and whatever Dynamo remembers of functions, see nothing of a capture."""
    encoder = nn.TransformerEncoder(_layer(), 2).eval()
    clone = shallow_clone(encoder)
    forwards = [layer.forward for layer in FAST_LAYERS]
    open_fast_paths(clone)
    assert [type(module) for module in encoder.modules()] != [type(module) for module in clone.modules()]
    assert [type(module).__name__ for module in encoder.modules()] == [type(m).__name__ for m in clone.modules()]
    assert all(isinstance(module, nn.TransformerEncoderLayer) for module in clone.layers)
    assert encoder.use_nested_tensor
    assert type(encoder.layers[0]) is nn.TransformerEncoderLayer
    assert [layer.forward for layer in FAST_LAYERS] == forwards


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_an_opened_layer_computes_the_same(mode: Any) -> None:
    layer = _layer()
    clone = shallow_clone(layer)
    open_fast_paths(clone)
    with mode():
        torch.testing.assert_close(clone(X, src_key_padding_mask=PADDED), layer(X, src_key_padding_mask=PADDED))
