"""Self-attention with its projections against its conformance suite, and against the module that it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from itnet_compiler.ir.domain import Keys
from itnet_compiler.ir.kernel import kernels
from itnet_compiler.ir.projected_softmax import MASKS, ProjectedSoftmax
from itnet_compiler.ir.softmax import Softmax
from tests.conformance import Case, check_case, conformance_cases

# The operator has no derivative, and is not linear in its input; both are checked below.
CASES = [case for case in conformance_cases(ProjectedSoftmax) if case.check not in ("gradient", "matrix")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)


def test_a_family_may_have_several_kernels() -> None:
    assert {kernel for kernel in kernels() if kernel.family == "softmax"} > {Softmax, ProjectedSoftmax}


@pytest.fixture
def layer() -> nn.MultiheadAttention:
    found = nn.MultiheadAttention(12, 4, batch_first=True).double().eval()
    nn.init.normal_(found.in_proj_bias)
    return found


def _operands(layer: nn.MultiheadAttention, x: Tensor) -> dict[str, Tensor]:
    return {
        "input": x,
        "qkv_weight": layer.in_proj_weight,
        "qkv_bias": layer.in_proj_bias,
        "proj_weight": layer.out_proj.weight,
        "proj_bias": layer.out_proj.bias,
    }


def _input() -> Tensor:
    return torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("average", [True, False])
def test_definition_is_the_module(layer: nn.MultiheadAttention, average: bool) -> None:
    """With gradients the module runs its plain operators, and so the definition's gradients can be checked too."""
    x = _input()
    expected = layer(x, x, x, average_attn_weights=average)
    kernel = ProjectedSoftmax(4, weights="mean" if average else "heads")
    found = kernel.evaluate(Keys(), **_operands(layer, x))
    torch.testing.assert_close(found, expected)
    leaves, pull = [x, *layer.parameters()], [torch.randn_like(out) for out in found]
    torch.testing.assert_close(*(torch.autograd.grad(out, leaves, pull) for out in (found, expected)))


@pytest.mark.parametrize("over", MASKS)
@pytest.mark.parametrize("kind", [torch.bool, torch.float64])
def test_a_query_without_keys_is_nan_as_in_the_operator(
    layer: nn.MultiheadAttention, over: str, kind: torch.dtype
) -> None:
    x = _input()
    masked = torch.rand({"pairs": (5, 5), "keys": (3, 5), "full": (3, 4, 5, 5)}[over]) < 0.3
    masked[1] = True
    mask = masked if kind is torch.bool else torch.zeros(masked.shape, dtype=kind).masked_fill(masked, -torch.inf)
    given = _operands(layer, x)
    with torch.no_grad():
        expected = torch._native_multi_head_attention(
            x, x, x, 12, 4, *list(given.values())[1:], mask, True, False, MASKS.index(over)
        )
        found = ProjectedSoftmax(4, over, "heads").evaluate(Keys(), **given, mask=mask)
    nothing = {"pairs": (slice(None), slice(None), 1), "keys": 1, "full": 1}[over]
    assert expected[1][nothing].isnan().all()
    assert not expected[1].isnan().all()
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_kernel_matrix_applied_to_the_projected_values(layer: nn.MultiheadAttention) -> None:
    x, kernel = _input(), ProjectedSoftmax(4)
    given = _operands(layer, x)
    matrix = kernel.kernel_matrix(Keys(), **given)
    assert matrix.shape == (3, 4, 5, 5)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(3, 4, 5, dtype=torch.float64))
    found = kernel.apply_matrix(Keys(), matrix, **given)
    torch.testing.assert_close(found, kernel.evaluate(Keys(), **given))


def test_work(layer: nn.MultiheadAttention) -> None:
    x = torch.empty(3, 5, 12, device="meta")
    operands = _operands(layer.float().to("meta"), x)
    work = ProjectedSoftmax(4).work(Keys(), operands, (x,))
    assert work.flops == 2 * 15 * (12 * 36 + 12 * 12) + 3 * 5 * 5 * (4 * 12 + 5 * 4)
    assert work.bytes == 4 * (sum(tensor.numel() for tensor in operands.values()) + x.numel())


def test_description() -> None:
    assert ProjectedSoftmax(8, "keys", "mean").describe() == "softmax(heads=8, mask=keys, weights=mean)"


@pytest.mark.parametrize("settings", [{"mask": "causal"}, {"weights": "all"}], ids=str)
def test_contradictions_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ProjectedSoftmax(**settings)
