"""Alignment of two captures of one module."""

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.runtime.align import align
from itnet_compiler.unified import program_of


class Net(nn.Module):
    def __init__(self, drop: float = 0.2) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Dropout(drop)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x)).relu())


class Auxiliary(Net):
    def forward(self, x):
        y = super().forward(x)
        return (y, y.mean()) if self.training else y


X = torch.randn(2, 3, 9)


def variants(model):
    unified = itnet.unify(model.eval(), X)
    unified.train()(X)
    return program_of(unified).variants


def test_the_same_graph_is_the_same():
    first, second = (itnet.unify(Net(0.2).eval(), X).graph for _ in range(2))
    found = align(first, second)
    assert not found.obstacle and not found.literals and found.describe("eval") == "as eval"


def test_literals_that_differ_are_named():
    first, second = (itnet.unify(Net(rate).eval(), X).graph for rate in (0.2, 0.5))
    (literal,) = align(first, second).literals
    assert (literal.argument, literal.reference, literal.value) == ("dropout.p", 0.2, 0.5)
    assert align(first, second).describe("eval") == "as eval but for dropout.p"


def test_other_data_flow_is_an_obstacle():
    class Left(nn.Module):
        def forward(self, x):
            a, b = x.exp(), x.sin()
            return a - b

    class Right(Left):
        def forward(self, x):
            a, b = x.exp(), x.sin()
            return b - a

    first, second = (itnet.unify(kind(), X).graph for kind in (Left, Right))
    assert "comes from elsewhere" in align(first, second).obstacle


def test_modes_that_do_not_align_say_where():
    _, train = variants(Auxiliary())
    assert "not aligned with eval" in train.alignment


@pytest.mark.parametrize("model", [Net, Auxiliary])
def test_equal_integrals_are_shared_by_both_modes(model):
    evaluating, training = variants(model())
    assert [a is b for a, b in zip(evaluating.integrals, training.integrals, strict=False)] == [True]


def test_copies_share_among_themselves_only():
    import copy

    unified = itnet.unify(Net().eval(), X)
    unified.train()(X)
    twin = copy.deepcopy(unified)
    first, second = program_of(twin).variants
    assert first.integrals[0] is second.integrals[0] is not program_of(unified).variants[0].integrals[0]
    itnet.lower(twin, method="reference")
    assert unified.integrals["conv"].plan.lowering == "library"
