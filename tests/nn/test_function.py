"""Kernels written by users: tiled against the dense definition, gradients to everything, errors that help."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import itnet
from itnet_compiler.nn import integral

NET = nn.Sequential(nn.Linear(9, 8), nn.GELU(), nn.Linear(8, 2))


@itnet.kernel
def network(pos_q, pos_k, feat_q, feat_k):
    return NET(torch.cat([pos_q - pos_k, feat_q, feat_k]))


@itnet.kernel
def bell(pos_q, pos_k, feat_q, feat_k, *, params):
    """A bell of the distance."""
    return torch.exp(-params["sharpness"] * ((pos_q - pos_k) ** 2).sum())


def _given(batch=2, queries=11, sources=11, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, 2, sources, 3), (1, queries, 1), (batch, queries, 4))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("given", [{}, {"causal": True}, {"window": 2}, {"window": (3, None)}], ids=str)
def test_tiled_is_the_definition(normalise, given):
    value, positions, features = _given()
    weights = torch.rand(1, 11) + 0.1
    padding = torch.arange(11) < torch.tensor([[11], [7]])
    both = [
        network.integral(
            value,
            positions=positions,
            features=features,
            weights=weights,
            mask=padding,
            normalise=normalise,
            method=method,
            **given,
        )
        for method in ("tiled", "reference")
    ]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)


def test_the_function_still_runs_on_one_pair_and_keeps_its_name():
    _, positions, _ = _given(batch=1)
    sharpness = torch.tensor(3.0)
    one = bell(positions[0, 0], positions[0, 4], None, None, params={"sharpness": sharpness})
    matrix = torch.eye(11)[None, None].expand(1, 2, 11, 11)
    found = bell.integral(matrix, positions=positions, params={"sharpness": sharpness})
    torch.testing.assert_close(found[0, 0, 0, 4], one)
    assert (bell.__name__, bell.__doc__) == ("bell", "A bell of the distance.")
    assert "test_function.py" in repr(bell)


def test_gradients_reach_what_is_captured_and_what_is_given():
    value, positions, features = _given()
    sharpness = torch.tensor(2.0, requires_grad=True)
    bell.integral(value, positions=positions, params={"sharpness": sharpness}).sum().backward()
    distance = (positions[0] - positions[0].T).square()
    expected = (-distance * torch.exp(-2 * distance) @ value).sum()
    torch.testing.assert_close(sharpness.grad, expected, rtol=1e-4, atol=1e-4)
    network.integral(value, positions=positions, features=features).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in NET.parameters())
    NET.zero_grad()


def test_cross_domain_and_irregular_points():
    value, positions, features = _given(queries=5)
    other, more = torch.rand(2, 11, 1), torch.randn(2, 11, 4)
    points = {"positions": positions[:, :5], "features": features[:, :5]}
    both = [
        network.integral(value, **points, source_positions=other, source_features=more, method=method)
        for method in ("tiled", "reference")
    ]
    assert both[0].shape == (2, 2, 5, 3)
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)


def test_a_softmax_with_a_bias_that_is_never_stored():
    """Attention with ALiBi slopes as a pair function is the library's attention with a mask of biases."""
    slopes = torch.tensor([0.5, 0.25])

    @itnet.kernel
    def alibi(pos_q, pos_k, feat_q, feat_k):
        q, k = feat_q.view(2, 8), feat_k.view(2, 8)
        return (q * k).sum(-1) / 8**0.5 - slopes * (pos_q - pos_k).abs()

    q, k, v = torch.randn(3, 2, 70, 16).unbind(0)
    positions = torch.arange(70.0)[None, :, None]
    value = v.view(2, 70, 2, 8).transpose(1, 2)
    found = alibi.integral(value, positions=positions, features=q, source_features=k, normalise=True, causal=True)
    bias = -slopes[:, None, None] * (positions[0] - positions[0].T).abs()
    bias = bias.masked_fill(torch.ones(70, 70, dtype=torch.bool).triu(1), -torch.inf)
    heads = [tensor.view(2, 70, 2, 8).transpose(1, 2) for tensor in (q, k)]
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*heads, value, bias), rtol=1e-4, atol=1e-5)


def test_under_compile_after_a_first_call():
    torch._dynamo.reset()
    value, positions, features = _given()

    def call(value, features):
        return integral(network, value, positions=positions, features=features)

    expected = call(value, features)
    found = torch.compile(call, backend="aot_eager", fullgraph=True)(value, features)
    torch.testing.assert_close(found, expected)


def test_module_parameters_that_are_replaced_belong_in_params():
    @itnet.kernel
    def mixed(pos_q, pos_k, feat_q, feat_k, *, params):
        return params["weight"] @ (feat_q * feat_k)

    value, _, features = _given()
    for _ in range(2):
        weight = torch.randn(2, 4)
        found = mixed.integral(value, features=features, params={"weight": weight})
        expected = mixed.integral(value, features=features, params={"weight": weight}, method="reference")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(mixed._traced) == 1


def test_half_precision_and_captured_tensors_of_another_dtype():
    value, positions, features = _given(dtype=torch.bfloat16)
    found = network.integral(value, positions=positions, features=features)
    assert found.dtype == torch.bfloat16
    wide = [tensor.double() for tensor in (value, positions, features)]
    exact = network.integral(wide[0], positions=wide[1], features=wide[2])
    assert exact.dtype == torch.float64
    assert (found.double() - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(positions=None, features=None), "no queries"),
        (dict(positions=torch.zeros(1, 10, 1)), "pos_k has shape"),
        (dict(features=torch.zeros(3, 11, 4)), "feat_q has shape"),
        (dict(mask=torch.ones(2, 11)), "bool"),
        (dict(window=-1), "negative"),
        (dict(method="fast"), "no method"),
        (dict(value=torch.zeros(2, 3, 11, 3)), "gives 2 numbers for values of 3 heads"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said(change, reason):
    value, positions, features = _given()
    with pytest.raises(itnet.InputError, match=reason):
        network.integral(**({"value": value, "positions": positions, "features": features} | change))


def test_a_kernel_function_has_four_arguments_and_params():
    with pytest.raises(itnet.KernelError, match=r"takes \(pos_q, pos_k, feat_q, feat_k, \*, params\)"):
        itnet.kernel(lambda q, k: q @ k)
    value, positions, _ = _given()
    with pytest.raises(itnet.KernelError, match="takes params") as error:
        bell.integral(value, positions=positions)
    assert error.value.source_line.startswith("test_function.py:")
