"""What masks are proven to let through is named; what only looks like it is not."""

import math

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.passes.forms.mask_conditions import Condition, atom

LENGTH = 8


class Masked(nn.Module):
    def __init__(self, visible):
        super().__init__()
        self.visible = visible

    def forward(self, q, k, v, numbers):
        place = torch.arange(q.shape[-2])
        seen = self.visible(place[:, None], place[None, :], numbers)
        return (q @ k.mT).masked_fill(~seen, -math.inf).softmax(-1) @ v


NAMED = {
    "causal": lambda i, j, n: j <= i,
    "window of 2 before and 0 after": lambda i, j, n: (j <= i) & (i - j < 3),
    "window of 1 before and 2 after": lambda i, j, n: (i - j <= 1) & (j - i <= 2),
    "up to 1 later": lambda i, j, n: j <= i + 1,
    "the first 3": lambda i, j, n: j < 3,
    "causal with a prefix of 3": lambda i, j, n: (j < 3) | (j <= i),
    "blocks of 4": lambda i, j, n: i // 4 == j // 4,
    "causal in blocks of 4": lambda i, j, n: j // 4 <= i // 4,
    "causal within blocks of 4": lambda i, j, n: (i // 4 == j // 4) & (i >= j),
    "within segments": lambda i, j, n: (n[:, :, None] == n[:, None, :])[:, None],
}
UNNAMED = {
    "prefix after": lambda i, j, n: (j >= 3) | (j <= i),
    "prefix of queries": lambda i, j, n: (i < 3) | (j <= i),
    "blocks of two sizes": lambda i, j, n: (i // 4 == j // 4) & (i // 2 == j // 2),
    "blocks that do not begin together": lambda i, j, n: (i + 1) // 4 == j // 4,
    "other segments": lambda i, j, n: (n[:, :, None] != n[:, None, :])[:, None] | (i == j),
    "numbers of another sample": lambda i, j, n: (n[:, :, None] == n.flip(0)[:, None, :])[:, None],
    "later blocks": lambda i, j, n: j // 4 >= i // 4,
}


def unified_with(visible):
    torch.manual_seed(0)
    given = (*(torch.randn(2, 3, LENGTH, 4) for _ in range(3)), torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2], [0] * LENGTH]))
    model = Masked(visible).eval()
    unified = itnet.unify(model, given)
    torch.testing.assert_close(unified(*given), model(*given), equal_nan=True)
    (node,) = unified.integrals.values()
    return node.kernel


@pytest.mark.parametrize("name", NAMED)
def test_a_mask_is_named(name):
    steps = unified_with(NAMED[name]).steps
    assert [step.pattern or step.kind for step in steps] == [name]


@pytest.mark.parametrize("name", UNNAMED)
def test_a_mask_that_only_looks_like_it_is_not_named(name):
    steps = unified_with(UNNAMED[name]).steps
    assert [step.pattern for step in steps] == [""] and steps[0].kind in ("fill", "keep")


def test_names_of_conditions_agree_with_their_elements():
    """Each name against the elements that its atoms let through."""
    causal, within = atom({"i": 1, "j": -1}, 0), {atom({"i//2": 1, "j//2": -1}, 0), atom({"i//2": -1, "j//2": 1}, 0)}
    assert Condition(frozenset({causal})).describe("i", "j") == "causal"
    assert Condition(frozenset(within)).describe("i", "j") == "blocks of 2"
    assert Condition(frozenset({causal, *within})).describe("i", "j") == "causal within blocks of 2"
    assert Condition(frozenset(within), either=True).describe("i", "j") == ""
    assert Condition(frozenset({causal, atom({"j": -1}, 1)}), either=True).describe("i", "j") == (
        "causal with a prefix of 2"
    )
    assert Condition(frozenset({causal})).describe("j", "i") == "from 0 before"
