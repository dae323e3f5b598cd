"""Which modules a user makes boundaries."""

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.runtime.boundary import resolve


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.head = (
            nn.Conv1d(4, 4, 1),
            nn.ModuleList(Block() for _ in range(3)),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(-1))


BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("blocks", BLOCKS),
        ("blocks.*", BLOCKS),
        ([Block], BLOCKS),
        (Block, BLOCKS),
        (["blocks.1", "stem"], ["blocks.1", "stem"]),
        (["blocks.1", "blocks.1.conv"], ["blocks.1"]),
        ([nn.Conv1d], ["stem", "blocks.0.conv", "blocks.1.conv", "blocks.2.conv"]),
        (None, []),
        ("root", []),
    ],
)
def test_chosen(wanted, found):
    chosen, policy = resolve(Stack(), wanted)
    assert chosen == found
    assert ("" in policy.opened) == bool(found)
    assert policy.divide == (wanted != "root")


@pytest.mark.parametrize("wanted", ["nothing", [nn.LSTM], [3], ["blocks.*", "nowhere.*"]])
def test_what_fits_nothing_is_refused(wanted):
    with pytest.raises(itnet.InputError, match=r"no module fits|class or a glob"):
        resolve(Stack(), wanted)


def test_no_repeated_blocks():
    with pytest.raises(itnet.InputError, match="no repeated blocks"):
        resolve(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "blocks")


@pytest.mark.parametrize("wanted", ["blocks", [Block], ["blocks.1"], "root", None])
def test_same_results_in_both_modes(wanted):
    model, x = Stack(), torch.randn(2, 4, 9)
    unified = itnet.unify(model, x, boundaries=wanted, copy=True)
    assert set(resolve(model, wanted)[0]) <= set(unified.parts)
    for training in (False, True):
        assert torch.equal(model.train(training)(x), unified.train(training)(x))


def test_without_verification_parts_are_not_compared():
    class Branching(Stack):
        def forward(self, x):
            return super().forward(x if float(x.sum()) > 0 else -x)

    model, x = Branching(), torch.randn(2, 4, 9)
    unified = itnet.unify(model, x, verify=False, copy=True)
    assert unified.parts and torch.equal(model(x), unified(x))
    assert all(node.verification.status != "verified" for node in unified.integrals.values())
