"""The formulas that ``explain`` shows, of nodes found in programs."""

import pytest
import torch

from itnet_compiler.ir.attention import Attention
from itnet_compiler.ir.separable import Separable
from itnet_compiler.ir.steps import Step

PLAIN = {"query": "b h i c", "key": "b h j c", "value": "b h j e", "output": "b h i e"}


def test_every_step_has_a_line():
    steps = (
        Step("times", 0.125),
        Step("plus", role="mask", layout="b 1 1 j", pattern="padding"),
        Step("fill", -torch.inf, "seen", "i j"),
        Step("causal", layout="i j"),
        Step("tanh"),
        Step("over", role="heat", layout="h 1 1"),
    )
    kernel = Attention(**PLAIN, weights="b h i j", steps=steps, after=(Step("dropout", 0.1),))
    assert kernel.formula() == [
        "s[b, h, i, j] = Σ_c q[b, h, i, c]·k[b, h, j, c]",
        "s ← s·0.125",
        "s ← s + mask[b, j]    (padding)",
        "s ← -inf where seen[i, j]",
        "s ← -inf where j > i",
        "s ← tanh(s)",
        "s ← s / heat[h]",
        "w[b, h, i, j] = exp(s) / Σ_j exp(s)",
        "w ← dropout(w, 0.1)",
        "y[b, h, i, e] = Σ_j w·v[b, h, j, e]",
    ]


def test_linear_attention():
    kernel = Separable(**PLAIN, causal=True, normalised=True, eps=1e-6, scale=0.5)
    assert kernel.formula() == [
        "K[b, h, i, j] = 0.5·Σ_c q[b, h, i, c]·k[b, h, j, c]",
        "K ← 0 where j > i",
        "K ← K / (Σ_j K + 1e-06)",
        "y[b, h, i, e] = Σ_j K·v[b, h, j, e]",
    ]


@pytest.mark.parametrize("kernel", [Attention, Separable])
def test_all_samples_have_one(kernel):
    for sample in kernel.samples():
        lines = sample.spec.kernel.formula()
        assert len(lines) >= 2 and all("None" not in line for line in lines)
