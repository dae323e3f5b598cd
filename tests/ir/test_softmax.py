"""The softmax family against its conformance suite and against PyTorch where a query has no key."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from itnet_compiler.ir.domain import Keys
from itnet_compiler.ir.softmax import Softmax
from tests.conformance import Case, check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(Softmax), ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)


def _inputs(
    *lead: int, queries: int = 5, keys: int = 6, width: int = 3, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    sizes = ((queries, 4), (keys, 4), (keys, width))
    return [torch.randn(*lead, *size, dtype=dtype, requires_grad=True) for size in sizes]


def _mask(kind: str, queries: int = 5, keys: int = 6) -> Tensor:
    """A mask whose second row allows nothing."""
    keep = torch.ones(queries, keys, dtype=torch.bool).tril(2)
    keep[1] = False
    return keep if kind == "bool" else torch.zeros(queries, keys, dtype=torch.float64).masked_fill(~keep, -math.inf)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=lambda backend: backend.name)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_query_without_keys_gives_zero_as_in_the_library(kind: str, backend: SDPBackend) -> None:
    inputs, mask = _inputs(2, 3, width=4), _mask(kind)  # the flash kernel wants equal widths
    with sdpa_kernel(backend):
        expected = F.scaled_dot_product_attention(*inputs, mask)
    query, key, value = inputs
    found = Softmax().evaluate(Keys(), query=query, key=key, value=value, mask=mask)
    assert not found[..., 1, :].any()
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(found)
    gradients = [torch.autograd.grad(out, inputs, pull) for out in (found, expected)]
    assert all(gradient.isfinite().all() for gradient in gradients[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("queries", [0, 4])
def test_no_keys_at_all(queries: int) -> None:
    inputs = _inputs(2, 3, queries=queries, keys=0)
    expected = F.scaled_dot_product_attention(*inputs)
    found = Softmax().evaluate(Keys(), **dict(zip(("query", "key", "value"), inputs, strict=True)))
    torch.testing.assert_close(found, expected)


def test_mask_and_causal_apply_together() -> None:
    query, key, value = (tensor.detach() for tensor in _inputs(2, 3, width=4))
    mask = torch.randn(5, 6, dtype=torch.float64)
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # the math backend refuses both at once
            expected = F.scaled_dot_product_attention(query, key, value, mask, is_causal=True)
    except RuntimeError as error:
        if "should not be set when is_causal" not in str(error):
            raise
        pytest.skip("this version of torch refuses both at once")
    found = Softmax().evaluate(Keys(causal=True), query=query, key=key, value=value, mask=mask)
    torch.testing.assert_close(found, expected)


def test_batch_axes_broadcast() -> None:
    query, key, value = torch.randn(2, 3, 5, 4), torch.randn(3, 6, 4), torch.randn(2, 1, 6, 3)
    found = Softmax().evaluate(Keys(), query=query, key=key, value=value)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value))


def test_large_scores_do_not_overflow() -> None:
    query, key, value = (1e3 * tensor for tensor in _inputs(2, 3, dtype=torch.float32))
    found = Softmax().evaluate(Keys(), query=query, key=key, value=value)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value))


def test_kernel_matrix() -> None:
    query, key, _ = _inputs(2, 3)
    matrix = Softmax().kernel_matrix(Keys(causal=True), query=query, key=key)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))
    assert not matrix.triu(1).any()
    # K depends on the scores' differences: K(1, 0) / K(1, 1) = exp(s(1, 0) − s(1, 1)).
    scores = query @ key.mT / math.sqrt(4)
    torch.testing.assert_close(matrix[..., 1, 0] / matrix[..., 1, 1], (scores[..., 1, 0] - scores[..., 1, 1]).exp())


def test_dropout_zeroes_and_rescales_the_weights() -> None:
    query, key, value = torch.randn(1, 50, 4), torch.randn(1, 40, 4), torch.randn(1, 40, 3)
    kernel = Softmax(1.0, dropout=0.25)
    torch.manual_seed(0)
    output = kernel.evaluate(Keys(), query=query, key=key, value=value)
    torch.manual_seed(0)
    weights = torch.dropout(kernel.kernel_matrix(Keys(), query=query, key=key), 0.25, True)
    torch.testing.assert_close(output, weights @ value)
    assert kernel.properties(Keys()) == {"linear"}


@pytest.mark.parametrize(
    ("domain", "pairs"), [(Keys(), 5 * 6), (Keys(causal=True), 1 + 2 + 3 + 4 + 5)], ids=["all", "causal"]
)
def test_work(domain: Keys, pairs: int) -> None:
    query, key, value = (tensor.detach().to("meta") for tensor in _inputs(2, 3))
    work = Softmax().work(domain, {"query": query, "key": key, "value": value}, (query[..., :3],))
    assert work.flops == 2 * 3 * pairs * (2 * 4 + 2 * 3 + 5)
    assert work.bytes == 8 * 2 * 3 * (5 * 4 + 6 * 4 + 6 * 3 + 5 * 3)


def test_causal_work_with_more_queries_than_keys() -> None:
    query, key = torch.empty(5, 1, device="meta"), torch.empty(3, 1, device="meta")
    work = Softmax().work(Keys(causal=True), {"query": query, "key": key, "value": key}, (query,))
    assert work.flops == (1 + 2 + 3 + 3 + 3) * (2 + 2 + 5)


def test_description() -> None:
    assert Softmax().describe() == "softmax"
    assert Softmax(scale=0.125, grouped=True).describe() == "softmax(scale=0.125, grouped)"
