"""Snapshots of what modules keep on themselves."""

import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from itnet_compiler.capture.belongings import Belongings, contents_kept


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.count, self.seen, self.table = 0, [], {"a": [1]}
        self.recent, self.names = deque([1], maxlen=3), {"x"}
        self.dice, self.noise = random.Random(0), np.random.default_rng(0)
        self.generator = torch.Generator().manual_seed(0)
        self.loose, self.unseen = torch.zeros(2), [nn.BatchNorm1d(2)]
        self.alias = [self.fc.weight]


WRITES = {
    "count": lambda m: setattr(m, "count", 1),
    "new": lambda m: setattr(m, "new", 1),
    "seen": lambda m: m.seen.append(1),
    "table['a']": lambda m: m.table["a"].append(2),
    "recent": lambda m: m.recent.append(2),
    "names": lambda m: m.names.add("y"),
    "dice": lambda m: m.dice.random(),
    "noise": lambda m: m.noise.normal(),
    "generator": lambda m: torch.rand(2, generator=m.generator),
    "fc": lambda m: m.fc.register_parameter("bias", None),
    "loose": lambda m: setattr(m, "loose", torch.ones(2)),
}


@pytest.mark.parametrize("name", WRITES)
def test_every_kind_of_write_is_named_and_undone(name):
    model = Keeps()
    held = Belongings(model)
    assert held.changed() == []
    WRITES[name](model)
    assert held.changed() and held.changed()[0].startswith(name)
    held.restore()
    assert held.changed() == [] and Belongings(model).changed() == []
    assert not hasattr(model, "new") and model.fc.bias is not None


def test_tensors_are_those_that_are_not_registered():
    model = Keeps()
    held = Belongings(model)
    assert held.hidden == model.unseen
    own = {id(t) for t in (model.loose, *model.unseen[0].parameters(), *model.unseen[0].buffers())}
    assert {id(t) for t in held.tensors.values()} == own


def test_contents_are_put_back_whatever_happens():
    model = Keeps()

    def fails():
        with contents_kept(Belongings(model).tensors.values()):
            model.unseen[0].train()(torch.randn(3, 2))
            model.loose.fill_(torch.nan)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert int(model.unseen[0].num_batches_tracked) == 0 and torch.equal(model.loose, torch.zeros(2))


def test_contents_of_what_cannot_be_copied_are_left_alone():
    sparse = torch.eye(2).to_sparse()
    with contents_kept([sparse, nn.LazyLinear(2).weight, torch.zeros(2, device="meta")]) as kept:
        assert len(kept) == 1
