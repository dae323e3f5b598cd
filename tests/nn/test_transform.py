"""The layer: any sizes, masks and measures; initialisation; the dense definition; a module like any other."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from itnet.nn import IntegralTransform, grid
from torch import nn

import itnet


@itnet.kernel
def bells(pos_q, pos_k, feat_q, feat_k, *, params):
    return torch.exp(-params["sharpness"] * ((pos_q - pos_k) ** 2).sum()) * params["mix"] @ (feat_q * feat_k)


def _params():
    return {"sharpness": nn.Parameter(torch.tensor(30.0)), "mix": torch.randn(4, 32)}


def _both(layer, *args, **kwargs):
    """Output and gradients of the layer, tiled and by the dense definition in float64."""
    found = []
    for method, dtype in (("tiled", torch.float32), ("reference", torch.float64)):
        twin = copy.deepcopy(layer).to(dtype)
        twin.method = method
        cast = lambda t, dtype=dtype: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t  # noqa: E731
        given = torch.utils._pytree.tree_map(cast, (args, kwargs))
        x = given[0][0].requires_grad_()
        y = twin(x, *given[0][1:], **given[1])
        parameters = [p for p in twin.parameters() if p.requires_grad]
        grads = torch.autograd.grad(y.square().mean(), [x, *parameters], allow_unused=True, materialize_grads=True)
        found.append([y, *grads])
    return zip(*found, strict=True)


def _check(layer, *args, **kwargs):
    pairs = list(_both(layer, *args, **kwargs))
    scale = max(theirs.norm().item() for _, theirs in pairs[1:])
    for mine, theirs in pairs:
        assert (mine.double() - theirs).norm() <= 5e-5 * max(theirs.norm().item(), 0.1 * scale)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalise": True, "depth": 2},
        {"kernel": "softmax+mlp"},
        {"causal": True, "absolute": 4},
        {"window": (3, 1), "measure": "counting", "head_norm": False},
        {"features": False, "bias": False},
        {"fourier": 0, "heads": 8},
        {"norm": "weight"},
        {"norm": "spectral"},
        {"kernel": bells, "params": _params()},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_tiled_is_the_definition(options):
    torch.manual_seed(0)
    _check(IntegralTransform(32, **options).eval(), torch.randn(2, 37, 32))


def test_cross_domain_with_points_weights_and_masks():
    torch.manual_seed(0)
    layer = IntegralTransform(32, source_dim=12, axes=3)
    x, source = torch.randn(2, 9, 32), torch.randn(2, 21, 12)
    p, q, w = torch.rand(2, 9, 3), torch.rand(2, 21, 3), torch.rand(2, 21)
    _check(layer, x, source, p, q, w)
    _check(layer, x, source, p, q, mask=torch.rand(2, 9, 21) < 0.6)
    _check(layer, x, source, p, q, mask=torch.arange(21) < torch.tensor([[21], [4]]))


def test_padding_changes_nothing():
    torch.manual_seed(0)
    layer, x = IntegralTransform(32, absolute=2), torch.randn(1, 11, 32)
    p = torch.rand(1, 11, 1)
    expected = layer(x, positions=p)
    padded = [torch.cat([tensor, 1e3 * torch.ones(1, 6, tensor.shape[2])], 1) for tensor in (x, p)]
    mask = torch.arange(17)[None] < 11
    torch.testing.assert_close(layer(padded[0], positions=padded[1], mask=mask)[:, :11], expected)
    torch.testing.assert_close(
        layer(padded[0], positions=padded[1], weights=mask / 11.0)[:, :11], expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "options", [{}, {"normalise": True}, {"depth": 3}, {"absolute": 8, "kernel": "softmax+mlp"}], ids=str
)
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("length", [1, 16, 256, 2048])
def test_the_output_starts_with_variance_one_at_any_length(length, smooth, options):
    torch.manual_seed(0)
    x = torch.randn(1, length, 64)
    if smooth:  # a sampled function instead of noise
        x = F.interpolate(torch.randn(1, 64, 12), size=length, mode="linear", align_corners=True).mT
        x = x / x.std() if length > 1 else x
    with torch.no_grad():
        y = torch.cat([IntegralTransform(64, **options)(x[:, :512], x) for _ in range(4)])
    assert 0.7 < y.square().mean() < 1.4


def test_the_kernel_starts_with_variance_one():
    torch.manual_seed(0)
    x, p = torch.randn(1, 200, 64), grid((200,))
    found = []
    for _ in range(20):
        kernel = IntegralTransform(64, depth=2).kernel
        numbers = kernel.kernel.numbers(**kernel.operands((p, p, x, x)), value=torch.empty(1, 4, 200, 1))
        found.append(numbers.square().mean())
    assert 0.6 < torch.stack(found).mean() < 1.6


@pytest.mark.parametrize("shape", [(2, 0, 32), (0, 5, 32), (1, 1, 32), (3, 7, 32)], ids=str)
def test_odd_sizes(shape):
    layer, x = IntegralTransform(32), torch.randn(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape
    empty = layer(torch.randn(2, 5, 32), torch.randn(2, 0, 32))
    assert torch.equal(empty, layer.out.bias.expand(2, 5, 32))


def test_strided_inputs_and_half_precision():
    torch.manual_seed(0)
    layer = IntegralTransform(32)
    x = torch.randn(32, 19, 2)
    torch.testing.assert_close(layer(x.permute(2, 1, 0)), layer(x.permute(2, 1, 0).contiguous()))
    half = copy.deepcopy(layer).to(torch.bfloat16)
    y = half(x.permute(2, 1, 0).bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - layer(x.permute(2, 1, 0))).norm() < 0.05 * y.float().norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.permute(2, 1, 0))
    assert (y.float() - layer(x.permute(2, 1, 0))).norm() < 0.05 * y.float().norm()


@pytest.mark.parametrize("options", [{}, {"kernel": bells, "params": _params()}], ids=["mlp", "function"])
def test_it_is_a_module_like_any_other(options, tmp_path):
    torch.manual_seed(0)
    layer, x = IntegralTransform(32, **options), torch.randn(2, 13, 32)
    expected = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected)
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in layer.parameters()}
    other = IntegralTransform(32, **(options | {"params": _params()} if "kernel" in options else options))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)
    assert torch.equal(torch.func.functional_call(layer, dict(layer.named_parameters()), x), expected)


def test_relaxed_attention_starts_as_attention_and_learns_the_bias():
    torch.manual_seed(0)
    layer = IntegralTransform(32, kernel="softmax+mlp", head_norm=False, causal=True)
    x = torch.randn(2, 17, 32)
    heads = [
        tensor.unflatten(-1, (4, 8)).transpose(1, 2)
        for tensor in (layer.kernel.base_query(x), layer.kernel.base_source(x), layer.value(x))
    ]
    expected = layer.out(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
    y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    assert layer.kernel.gate.grad.abs().min() > 0
    assert not layer.kernel.bias.grad.any()  # the gate is closed


def test_under_compile_and_export():
    torch._dynamo.reset()
    torch.manual_seed(0)
    for options in ({}, {"kernel": bells, "params": _params()}):
        layer, x = IntegralTransform(32, **options), torch.randn(2, 13, 32)
        expected = layer(x)
        torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), expected)
        axes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
        program = torch.export.export(layer, (x,), dynamic_shapes=(axes,))
        longer = torch.randn(3, 20, 32)
        torch.testing.assert_close(program.module()(longer), layer(longer))


def test_gradcheck():
    torch.manual_seed(0)
    layer = IntegralTransform(4, heads=2, hidden=3, fourier=2).double()
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    layer.method = "reference"
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_what_does_not_fit_is_said():
    for options, reason in (
        ({"heads": 5}, "do not divide"),
        ({"heads": 0}, "32 features in 0 heads"),
        ({"depth": 0}, "0 hidden layers"),
        ({"measure": "best"}, "no measure"),
        ({"kernel": "magic"}, "no kernel"),
        ({"fourier": 0, "features": False}, "of nothing"),
        ({"norm": "batch"}, "no norm"),
        ({"kernel": bells, "params": _params(), "heads": 8}, "for 8 heads"),
    ):
        with pytest.raises(itnet.InputError, match=reason):
            IntegralTransform(32, **options)
    layer, x = IntegralTransform(32), torch.randn(2, 9, 32)
    for given, reason in (
        ({"x": torch.randn(2, 9, 16)}, r"x has shape \(2, 9, 16\)"),
        ({"x": torch.randn(9, 32)}, "x has shape"),
        ({"source": torch.randn(2, 5, 16)}, "source has shape"),
        ({"source": torch.randn(3, 5, 32)}, "source has shape"),
        ({"positions": torch.rand(2, 8, 1)}, "positions has shape"),
        ({"positions": torch.rand(2, 9, 2)}, "positions has shape"),
        ({"source_positions": torch.rand(2, 8, 1)}, "source_positions has shape"),
        ({"weights": torch.rand(2, 8)}, "weights has shape"),
        ({"mask": torch.ones(2, 8, dtype=torch.bool)}, "mask has shape"),
        ({"mask": torch.ones(2, 8, 9, dtype=torch.bool)}, "mask has shape"),
    ):
        with pytest.raises(itnet.InputError, match=reason):
            layer(**({"x": x} | given))
    with pytest.raises(itnet.InputError, match="no default"):
        IntegralTransform(32, axes=2)(torch.randn(1, 4, 32))


def test_it_shows_what_it_computes():
    layer = IntegralTransform(32, hidden=6, fourier=2)
    assert "# of each pair" in layer.program()
    assert "gelu" in layer.program()
    assert layer.spec.kernel.family == "mlp"
    assert "heads=4, over keys" in repr(layer)


def test_grid():
    assert torch.equal(grid((3,))[0, :, 0], torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(grid((2, 2))[0], torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    assert grid((1,)).item() == 0.0


def test_positions_that_repeat():
    torch.manual_seed(0)
    layer = IntegralTransform(32, axes=2, period=2.0, fourier=7, absolute=3)
    x, points = torch.randn(1, 19, 32), 2 * torch.rand(1, 19, 2)
    turned = points + 2.0 * torch.randint(-1, 2, points.shape)
    torch.testing.assert_close(layer(x, positions=points), layer(x, positions=turned), rtol=1e-4, atol=1e-4)
    turns = layer.kernel.frequencies / torch.pi
    assert torch.equal(turns.round(), turns.round(decimals=4)), "whole turns"
    assert len({tuple(turn) for turn in (turns.round().tolist() + (-turns).round().tolist())}) == 14
    assert "kernel.frequencies" not in dict(layer.named_parameters())
    one = IntegralTransform(32, period=1.0, fourier=3, features=False).kernel.frequencies
    torch.testing.assert_close(one.flatten(), 2 * torch.pi * torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(itnet.InputError, match="a period of 0"):
        IntegralTransform(32, period=0)
