"""The encoder-layer kernel against its conformance suite, and against the module that it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from itnet_compiler.ir.domain import Keys
from itnet_compiler.ir.encoder_layer import EncoderLayer
from tests.conformance import Case, check_case, conformance_cases

# The operator has no derivative; K is linear in the projected values only, see ``test_projected_softmax``.
CASES = [case for case in conformance_cases(EncoderLayer) if case.check not in ("gradient", "matrix")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)


def _operands(layer: nn.TransformerEncoderLayer, x: Tensor) -> dict[str, Tensor]:
    attention = layer.self_attn
    return {
        "input": x,
        "qkv_weight": attention.in_proj_weight,
        "qkv_bias": attention.in_proj_bias,
        "proj_weight": attention.out_proj.weight,
        "proj_bias": attention.out_proj.bias,
        "norm_weight_1": layer.norm1.weight,
        "norm_bias_1": layer.norm1.bias,
        "norm_weight_2": layer.norm2.weight,
        "norm_bias_2": layer.norm2.bias,
        "ffn_weight_1": layer.linear1.weight,
        "ffn_bias_1": layer.linear1.bias,
        "ffn_weight_2": layer.linear2.weight,
        "ffn_bias_2": layer.linear2.bias,
    }


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_definition_is_the_module(activation: str, norm_first: bool) -> None:
    """With gradients the module runs its plain operators, and so the definition's gradients can be checked too."""
    settings: dict[str, Any] = {"activation": activation, "norm_first": norm_first, "layer_norm_eps": 1e-3}
    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True, **settings).double().eval()
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    kernel = EncoderLayer(2, activation=activation, norm_first=norm_first, eps=1e-3)
    found, expected = kernel.evaluate(Keys(), **_operands(layer, x)), layer(x)
    torch.testing.assert_close(found, expected)
    leaves, pull = [x, *layer.parameters()], torch.randn_like(found)
    torch.testing.assert_close(*(torch.autograd.grad(out, leaves, pull) for out in (found, expected)))


@pytest.mark.parametrize("norm_first", [False, True])
def test_kernel_matrix_is_that_of_the_attention(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True, norm_first=norm_first).double().eval()
    nn.init.normal_(layer.norm1.weight)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    matrix = EncoderLayer(2, norm_first=norm_first).kernel_matrix(Keys(), **_operands(layer, x))
    source = layer.norm1(x) if norm_first else x
    _, weights = layer.self_attn(source, source, source, average_attn_weights=False)
    torch.testing.assert_close(matrix, weights)


def test_work() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True).to("meta")
    x = torch.empty(3, 5, 12, device="meta")
    operands = _operands(layer, x)
    work = EncoderLayer(2).work(Keys(), operands, (x,))
    attention = 15 * 8 * 12 * 12 + 3 * 5 * 5 * (4 * 12 + 5 * 2)
    assert work.flops == attention + 15 * (4 * 12 * 20 + 20 * 12 + 6 * 20)
    assert work.bytes == 4 * (sum(tensor.numel() for tensor in operands.values()) + x.numel())


def test_description() -> None:
    assert (
        EncoderLayer(8, activation="gelu", norm_first=True).describe()
        == "softmax(heads=8, activation=gelu, norm_first)"
    )


@pytest.mark.parametrize("settings", [{"activation": "tanh"}, {"mask": "causal"}], ids=str)
def test_contradictions_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        EncoderLayer(**settings)
