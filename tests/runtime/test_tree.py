"""The state of a module tree that decides which graph applies."""

import torch
from torch import nn

from itnet_compiler.runtime.tree import TreeState


def model():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2, bias=False)))


def test_reading_twice_gives_the_same():
    tree = TreeState(model())
    assert tree.read() == tree.read()


def test_changes_that_matter_are_seen():
    net = model()
    tree = TreeState(net)
    seen = [tree.read()]

    def differs():
        seen.append(tree.read())
        return seen[-1] not in seen[:-1]

    net[1].eval()
    assert differs()
    net.double()
    assert differs()
    net[2][0] = nn.Linear(2, 2)
    assert differs()
    net[0] = nn.Identity()
    assert differs()
    net[2][0].bias = None
    assert differs()
    net[2][0].bias = nn.Parameter(torch.zeros(2))
    assert differs()
    assert not differs()


def test_hooks_below_the_root_are_seen():
    net = model()
    tree = TreeState(net)
    net.register_forward_hook(lambda *_: None)
    assert not tree.hooked()
    handle = net[0].register_forward_pre_hook(lambda *_: None)
    assert tree.hooked()
    handle.remove()
    assert not tree.hooked()


def test_tensors_are_located_in_their_registries():
    net = model()
    net.plain = torch.ones(1)
    tree = TreeState(net)
    store, name = tree.locate("2.0.weight")
    assert store[name] is net[2][0].weight
    store, name = tree.locate("1.running_mean")
    assert store[name] is net[1].running_mean
    store, name = tree.locate("plain")
    assert store[name] is net.plain
    assert tree.locate("nowhere.at.all") is None and tree.locate("0.missing") is None


def test_settings_are_seen():
    class Config:
        def __init__(self):
            self.kernel = "sdpa"

    net = nn.Sequential(nn.Dropout(0.5), nn.Identity())
    net[1].config, net[1].cache = Config(), None
    tree = TreeState(net)
    seen = [tree.read()]
    net[0].p = 0.25
    seen.append(tree.read())
    net[1].config.kernel = "eager"
    seen.append(tree.read())
    net[1].cache = torch.zeros(2)
    seen.append(tree.read())
    net[1].activation = torch.relu
    seen.append(tree.read())
    net[1].activation = torch.tanh
    seen.append(tree.read())
    assert len(set(seen)) == len(seen)
    assert not tree.matches(seen[-2]) and tree.matches(seen[-1])
