"""spectral+local: equal to its dense definition, causal where asked, any length, and cheap at long ones."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from itnet.nn import IntegralTransform

import itnet


def _layer(**options):
    torch.manual_seed(0)
    layer = IntegralTransform(16, 2, kernel="spectral+local", hidden=8, fourier=4, **options)
    torch.nn.init.normal_(layer.spectral.gate.weight)
    return layer


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (2, 5), "measure": "counting"}], ids=str)
@pytest.mark.parametrize("length", [1, 2, 7, 63, 130])
def test_it_is_its_dense_definition(length, options):
    layer = _layer(**options).double()
    x = torch.randn(2, length, 16, dtype=torch.float64, requires_grad=True)
    dense = copy.deepcopy(layer)
    dense.method = "reference"
    results = []
    for module in (layer, dense):
        y = module(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.float()(x.float()).double(), results[1][0], rtol=1e-4, atol=1e-4)


def test_causal_outputs_do_not_see_later_sources():
    layer, x = _layer(causal=True), torch.randn(1, 40, 16)
    y = layer(x)
    changed = x.clone()
    changed[:, 25:] = 0
    torch.testing.assert_close(layer(changed)[:, :25], y[:, :25], rtol=1e-4, atol=1e-5)


def test_padding_takes_no_part():
    layer, x = _layer(measure="counting"), torch.randn(1, 40, 16)
    mask = torch.arange(40)[None] < 30
    changed = x.clone()
    changed[:, 30:] = 1e3
    torch.testing.assert_close(layer(x, mask=mask)[:, :30], layer(changed, mask=mask)[:, :30], rtol=1e-4, atol=1e-5)


def test_what_it_does_not_take_is_said():
    layer, x = _layer(), torch.randn(1, 8, 16)
    for given in (dict(positions=torch.rand(1, 8, 1)), dict(source=x)):
        with pytest.raises(itnet.InputError, match="uniform grid"):
            layer(x, **given)
    with pytest.raises(itnet.InputError, match="padding only"):
        layer(x, mask=torch.ones(1, 8, 8, dtype=torch.bool))
    with pytest.raises(itnet.InputError, match="one axis"):
        IntegralTransform(16, kernel="spectral+local", axes=2)
    assert layer(torch.randn(2, 0, 16)).shape == (2, 0, 16)


def test_exported_the_length_is_free():
    layer, axes = _layer().eval(), {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(layer, (torch.randn(2, 9, 16),), dynamic_shapes=(axes,)).module()
    for length in (4, 15):
        x = torch.randn(3, length, 16)
        torch.testing.assert_close(program(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.exhaustive
def test_time_grows_almost_linearly():
    layer, seconds = _layer(), []
    with torch.no_grad():
        for length in (4096, 32768):
            x = torch.randn(1, length, 16)
            layer(x)
            rounds = []
            for _ in range(7):
                start = time.perf_counter()
                layer(x)
                rounds.append(time.perf_counter() - start)
            seconds.append(sorted(rounds)[1])
    assert seconds[1] / seconds[0] < 8 * 2.5  # 8 times the length; 64 times would be quadratic
