"""Without gradients a unified model runs the native kernels that the original runs: equal bits, NaN included."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import itnet
from itnet_compiler.ir.attention import Attention
from itnet_compiler.runtime.fast_paths import FastPaths
from itnet_compiler.unified import program_of
from tests import foreign

D = 16
X = torch.randn(3, 5, D)
NOTHING_LEFT = torch.tensor([[False] * 5, [True] * 5, [False] * 3 + [True] * 2])
LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)


class Attend(nn.Module):
    """Self-attention as a part of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)

    def forward(
        self,
        x: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = True,
        average_attn_weights: bool = True,
    ) -> Any:
        return self.attention(x, x, x, key_padding_mask, need_weights, attn_mask, average_attn_weights)


class Mixed(nn.Module):
    """Both layers that have a fast path, behind something trainable."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(D, D), Attend()
        self.layer = nn.TransformerEncoderLayer(D, 2, 20, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.attend(self.embed(x), need_weights=False)[0])


def _layer(**settings: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(D, 2, 20, batch_first=True, **settings).eval()


def _encoder(layers: int = 3, **settings: Any) -> nn.Module:
    return nn.TransformerEncoder(_layer(), layers, **settings).eval()


def _leaves(value: Any) -> list[Any]:
    return pytree.tree_leaves(value)


def _same(model: nn.Module, unified: nn.Module, *args: Any, **kwargs: Any) -> None:
    expected, found = _leaves(model(*args, **kwargs)), _leaves(unified(*args, **kwargs))
    assert [type(leaf) for leaf in expected] == [type(leaf) for leaf in found]
    tensors = [(a, b) for a, b in zip(expected, found, strict=True) if isinstance(a, Tensor)]
    for a, b in tensors:
        torch.testing.assert_close(b, a, rtol=_rounding(unified), atol=_rounding(unified), equal_nan=True)
        assert b.stride() == a.stride()


def _rounding(unified: nn.Module) -> float:
    """0, but where attention with weights is written out, which takes its products in another order."""
    nodes = [node for variant in program_of(unified).variants for node in variant.integrals]
    return 1e-5 if any(isinstance(node.kernel, Attention) for node in nodes) else 0.0


def _same_gradients(model: nn.Module, unified: nn.Module, x: Tensor) -> None:
    for tensors in ([x] if x.requires_grad else [], [p for p in model.parameters() if p.requires_grad]):
        if tensors:
            results = [torch.autograd.grad(net(x).square().sum(), tensors) for net in (model, unified)]
            torch.testing.assert_close(*results, rtol=_rounding(unified), atol=_rounding(unified))


def _origins(unified: nn.Module) -> dict[str, list[str]]:
    """Origins of the integrals by the label of the variant."""
    return {v.label: [integral.origin for integral in v.integrals] for v in program_of(unified).variants}


def _unrefused(unified: nn.Module) -> None:
    assert not program_of(unified).fallbacks
    for variant in program_of(unified).variants:
        assert variant.trial is not None
        assert variant.trial.error <= _rounding(unified)
        assert all(integral.verification.status == "verified" for integral in variant.integrals)


ENCODER, ATTENTION = "transformer encoder layer", "attention"
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], list[str]]] = {
    "attention": (Attend, {}, [ATTENTION]),
    "attention, no weights": (Attend, {"need_weights": False}, [ATTENTION]),
    "attention, weights of each head": (Attend, {"average_attn_weights": False}, [ATTENTION]),
    "attention, padded": (Attend, {"key_padding_mask": NOTHING_LEFT}, [ATTENTION]),
    "attention, masked": (Attend, {"attn_mask": LATER, "need_weights": False}, [ATTENTION]),
    "attention, both": (Attend, {"attn_mask": LATER, "key_padding_mask": NOTHING_LEFT}, [ATTENTION]),
    "layer": (_layer, {}, [ENCODER]),
    "layer, gelu": (lambda: _layer(activation="gelu"), {}, [ENCODER]),
    "layer, norm first": (lambda: _layer(norm_first=True, layer_norm_eps=1e-3), {}, [ENCODER]),
    "layer, padded": (_layer, {"src_key_padding_mask": NOTHING_LEFT}, [ENCODER]),
    "layer, masked": (_layer, {"src_mask": LATER}, [ENCODER]),
    "encoder": (_encoder, {}, [ENCODER] * 3),
    "encoder, padded": (
        lambda: _encoder(enable_nested_tensor=False),
        {"src_key_padding_mask": NOTHING_LEFT},
        [ENCODER] * 3,
    ),
    "mixed": (Mixed, {}, [ATTENTION, ENCODER]),
}


@pytest.mark.parametrize("case", CASES)
def test_same_bits_in_both_grad_modes(case: str) -> None:
    build, options, origins = CASES[case]
    model = build().eval()
    unified = itnet.unify(model, X, example_kwargs=options)
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            _same(model, unified, X, **options)
            _same(
                model, unified, torch.randn(2, 5, D), **{k: v[:2] if "padding" in k else v for k, v in options.items()}
            )
    assert _origins(unified)["eval (no grad)"] == origins
    assert set(_origins(unified)["eval"]) == {ATTENTION}
    assert len(program_of(unified).variants) == 2
    assert program_of(unified).current.label == "eval"
    _unrefused(unified)


@pytest.mark.parametrize("options", [{}, {"need_weights": False}, {"key_padding_mask": NOTHING_LEFT}], ids=str)
def test_attention_by_itself(options: dict[str, Any]) -> None:
    """The same tensor three times is self-attention, three tensors are not."""
    model = nn.MultiheadAttention(D, 2, batch_first=True).eval()
    with torch.no_grad():
        unified = itnet.unify(model, (X, X, X), example_kwargs=options)
        _same(model, unified, X, X, X, **options)
        _same(model, unified, X, 2 * X, X, **options)
        _same(
            model,
            unified,
            *[torch.randn(1, 5, D)] * 3,
            **{k: v[:1] if "padding" in k else v for k, v in options.items()},
        )
    assert [type(v.integrals[0].kernel).__name__ for v in program_of(unified).variants] == [
        "ProjectedSoftmax",
        "Attention" if options.get("need_weights", True) else "Softmax",
    ]
    _unrefused(unified)


def test_encoder_and_decoder() -> None:
    model = nn.Transformer(D, 2, 2, 2, 20, batch_first=True).eval()
    unified = itnet.unify(model, (X, torch.randn(3, 7, D)))
    with torch.no_grad():
        _same(model, unified, X, torch.randn(3, 7, D))
        _same(model, unified, torch.randn(2, 4, D), torch.randn(2, 3, D))
    assert _origins(unified)["eval (no grad)"] == [ENCODER] * 2 + [ATTENTION] * 4
    _unrefused(unified)


@pytest.mark.foreign
def test_vision_transformer() -> None:
    model, args, _ = foreign.build("vit_b_16")
    unified = itnet.unify(model, args)
    with torch.no_grad():
        _same(model, unified, *args)
    kernels = {type(i.kernel).__name__ for v in program_of(unified).variants if not v.grad for i in v.integrals}
    assert kernels >= {"ProjectedSoftmax"}
    _unrefused(unified)


def test_frozen_parameters_take_the_fast_path_with_gradients_enabled() -> None:
    model = Mixed().eval().requires_grad_(False)
    unified = itnet.unify(model, X)
    assert _origins(unified) == {"eval": [ATTENTION, ENCODER]}
    _same(model, unified, X)
    x = torch.randn(3, 5, D, requires_grad=True)  # an input that needs a gradient takes it off again
    _same(model, unified, x)
    _same_gradients(model, unified, x)
    model.embed.requires_grad_(True)  # and so does something trainable before the layers
    _same(model, unified, X)
    _same_gradients(model, unified, X)
    _unrefused(unified)
    assert len(program_of(unified).variants) == 3


def test_a_partly_frozen_stack() -> None:
    model = _encoder()
    model.layers[0].requires_grad_(False)
    unified = itnet.unify(model, X)
    assert _origins(unified) == {"eval": [ENCODER, ATTENTION, ATTENTION]}
    _same(model, unified, X)
    _same_gradients(model, unified, X)
    model.requires_grad_(True)
    _same(model, unified, X)
    _same_gradients(model, unified, X)


def test_alternating_calls_use_both_graphs() -> None:
    model = Mixed().eval()
    unified = itnet.unify(model, X)
    for _ in range(3):
        with torch.no_grad():
            _same(model, unified, X)
        _same_gradients(model, unified, X)
    assert list(_origins(unified)) == ["eval", "eval (no grad)"]
    assert itnet.unify(unified, X) is unified
    assert len(program_of(unified).variants) == 2
    twin = copy.deepcopy(unified)
    with torch.no_grad():
        _same(model, twin, X)
    _same(model, twin, X)
    assert len(program_of(twin).variants) == 2


def test_unified_without_gradients_first() -> None:
    model = Mixed().eval()
    with torch.no_grad():
        unified = itnet.unify(model, X)
    assert program_of(unified).current.label == "eval (no grad)"
    _same_gradients(model, unified, X)
    assert program_of(unified).current.label == "eval"


def test_training_mode_has_one_graph() -> None:
    model = Mixed().train()
    unified = itnet.unify(model, X, copy=True)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            torch.manual_seed(0)
            expected = model(X)
            torch.manual_seed(0)
            torch.testing.assert_close(unified(X), expected, rtol=_rounding(unified), atol=_rounding(unified))
    assert list(_origins(unified)) == ["train"]


def test_switches_of_torch() -> None:
    """A default device or the global switch shuts the fast paths of the original, and so of the unified model."""
    model = Mixed().eval()
    unified = itnet.unify(model, X)
    with torch.no_grad(), torch.device("cpu"):
        _same(model, unified, X)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            _same(model, unified, X)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert list(_origins(unified)) == ["eval"]
    with torch.no_grad():
        _same(model, unified, X)
    assert list(_origins(unified)) == ["eval", "eval (no grad)"]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_run_the_original_code() -> None:
    """Even if the mask of the first call, captured and compared, pads nothing."""
    for settle in (lambda model: model, lambda model: model.requires_grad_(False)):
        model = settle(_encoder(2))
        nothing = torch.zeros(3, 5, dtype=torch.bool)
        padded = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
        with torch.no_grad():
            unified = itnet.unify(model, X, example_kwargs={"src_key_padding_mask": nothing}, verify=False)
            _same(model, unified, X, src_key_padding_mask=padded)
        _same(model, unified, X, src_key_padding_mask=padded)
        assert any("zeroes padded positions" in text for text in program_of(unified).fallbacks)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("called", [True, False])
def test_compiled(grad: bool, called: bool) -> None:
    """torch.compile is given the graph that was captured for such calls, else the original code."""
    model = Mixed().eval()
    unified = itnet.unify(model, X)
    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        if called:
            unified(X)
        compiled = torch.compile(unified, backend="aot_eager", fullgraph=True)
        found = compiled(X)
        torch.testing.assert_close(found, model(X))
        torch.testing.assert_close(found, torch.compile(model, backend="aot_eager", fullgraph=True)(X))
    if grad:
        found.sum().backward()
        assert all(parameter.grad is not None for parameter in unified.parameters())


def test_exported_as_the_original_is() -> None:
    """Without native operators, which other exporters do not know."""
    model = Mixed().eval()
    with torch.no_grad():
        unified = itnet.unify(model, X)
        program = torch.export.export(unified, (X,), strict=False)
        torch.testing.assert_close(program.module()(X), model(X))
    assert not any("native" in str(node.target) or "_fwd" in str(node.target) for node in program.graph.nodes)


def test_the_reference_lowering_runs_too() -> None:
    model = Mixed().eval()
    with torch.no_grad():
        unified = itnet.unify(model, X)
        itnet.lower(unified, method="reference")
        torch.testing.assert_close(unified(X), model(X))


def test_conditions_read_before_a_call() -> None:
    model = Mixed().eval()
    paths = FastPaths(model)
    assert paths.read([X], 0) is None, "something is trainable in every layer"
    with torch.no_grad():
        assert paths.read([X], 0) == (False,)
        assert FastPaths(nn.Linear(2, 2)).read([X], 0) is None
        model.train()
        assert paths.read([X], 0) is None
        model.eval()
        model.attend = model.layer = nn.Identity()
        assert paths.read([X], 1) is None, "the tree has changed"
    frozen = FastPaths(Mixed().eval().requires_grad_(False))
    assert set(frozen.read([X], 0)[1:]) == {False}
    assert frozen.read([X.clone().requires_grad_()], 0) != frozen.read([X], 0)
