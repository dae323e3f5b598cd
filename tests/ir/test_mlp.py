"""The mlp family: its dense definition against the formula written for one pair, its cost, its text."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from itnet_compiler.ir.domain import Band, Keys
from itnet_compiler.ir.mlp import Mlp, pairs_in
from itnet_compiler.ir.softmax import Softmax
from itnet_compiler.lowering.base import find_lowering


def _drawn(sample):
    return sample.operands(torch.float64, torch.Generator().manual_seed(0))


def _one_pair(o, b, i, j):
    """κ for sample b, query i, source j, as the docstring writes it."""

    def fourier(frequencies, p):
        return torch.cat([torch.cos(frequencies @ p), torch.sin(frequencies @ p)])

    p, q = o["query_position"][b, i], o["source_position"][0, j]
    u = torch.cat([o["query_features"][b, i], fourier(o["absolute"], p)])
    v = torch.cat([o["source_features"][b, j], fourier(o["absolute"], q)])
    z = o["query_weight"] @ u + o["source_weight"] @ v + o["bias"]
    z = z + o["relative_weight"] @ fourier(o["frequencies"], p - q)
    for weight, bias in zip(o["layers"][::2], o["layers"][1::2], strict=True):
        z = weight @ F.gelu(z) + bias
    return z


@pytest.mark.parametrize("normalise", [False, True])
def test_the_definition_is_the_formula(normalise):
    sample = next(s for s in Mlp.samples() if s.spec.kernel == Mlp(normalise=normalise))
    o = _drawn(sample)
    found = sample.spec.evaluate(**o)
    for b, i in ((0, 0), (1, 3), (1, 6)):
        kappa = torch.stack([_one_pair(o, b, i, j) for j in range(7)])
        weight = (kappa.exp() if normalise else kappa) * (o["measure"][b] * o["mask"][b, i]).unsqueeze(1)
        weight = weight / weight.sum(0) if normalise else weight
        torch.testing.assert_close(found[b, :, i], torch.einsum("jh,hjv->hv", weight, o["value"][b]))


def test_a_query_without_sources_gives_zero():
    sample = Mlp(normalise=True).miniature(Keys(), Mlp.samples()[0].spec.operands)
    o = _drawn(sample)
    o["mask"][:, 2] = False
    for name in ("reference", "tiled"):
        found = find_lowering(name).build(sample.spec).function(**o)
        assert not found[:, :, 2].any()
        assert found.isfinite().all()


@pytest.mark.parametrize(
    "domain", [Keys(), Keys(causal=True), Band(2, None), Band(None, 1), Band(3, 2), Band(0, 0)], ids=str
)
@pytest.mark.parametrize("lengths", [(5, 9), (9, 5), (4, 4)])
def test_the_pairs_of_a_domain(domain, lengths):
    sample = Mlp(normalise=False)._sample(domain, Mlp.samples()[4].spec.operands, lengths=lengths)
    matrix = sample.spec.kernel.kernel_matrix(domain, **_drawn(sample))
    assert pairs_in(domain, *lengths) == int((matrix[0, 0] != 0).sum())


def test_scores_that_are_zero_are_attention_that_is_uniform():
    sample = Mlp(normalise=True).miniature(Keys(causal=True), Mlp.samples()[4].spec.operands)
    o = _drawn(sample)
    o["layers"] = [torch.zeros_like(tensor) for tensor in o["layers"]]
    zeros = torch.zeros(2, 3, 7, 1, dtype=torch.float64)
    expected = Softmax().evaluate(Keys(causal=True), query=zeros, key=zeros[:, :, :5], value=o["value"])
    torch.testing.assert_close(sample.spec.evaluate(**o), expected)


def test_description():
    assert Mlp().describe() == "mlp"
    assert Mlp(depth=2, normalise=True).describe() == "mlp(depth=2, normalise)"
    assert Band(3, 0).describe() == "band[-3:+0]"
    with pytest.raises(ValueError, match="own index"):
        Band(-1, 0)
