"""Attributes that forward writes in every call are written by the graph too; what depends on the past stays Python."""

import copy

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.unified import program_of
from tests.traps.compare import same


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 6)
        self.h = None


class Looks(Base):
    """Keeps what it returned, and the size of that."""

    def forward(self, x):
        self.h = self.fc(x)
        return self.h


class Carries(Base):
    """A state of one shape, read and written, with its graph; both names stand for one tensor at first."""

    def __init__(self):
        super().__init__()
        self.h = self.c = torch.zeros(6)

    def forward(self, x):
        self.h = torch.tanh(self.fc(x).mean(0) + self.h.detach())
        self.c = self.c.detach() * 0.5 + self.h
        return x * self.c


class Tuple(Base):
    def forward(self, x):
        y = self.fc(x)
        self.h = (y, y.mean(0), x.shape[0])
        return y * 2


class Notes:
    rows = None


class OnAnObject(Base):
    def __init__(self):
        super().__init__()
        self.notes = Notes()

    def forward(self, x):
        self.notes.rows = x.shape[0]
        return self.fc(x) / self.notes.rows


class KeepsItsInput(Base):
    def forward(self, x):
        self.h, self.w = x, self.fc.weight
        return self.fc(x)


class Below(nn.Sequential):
    def __init__(self):
        super().__init__(Looks(), Carries())


GRAPHS = (Looks, Carries, Tuple, OnAnObject, KeepsItsInput, Below)


def attributes(net):
    """What the modules hold besides parameters, and which of it is one object."""
    notes = getattr(net, "notes", Notes())
    names = ("h", "c", "w", "previous", "calls")
    return [notes.rows, *({name: vars(module).get(name) for name in names} for module in net.modules())]


def alike(model, unified, inputs):
    for x in inputs:
        outcomes = []
        for net in (model, unified):
            net.zero_grad()
            own = x.clone().requires_grad_()
            out = net(own)
            (own.sum() if out is own else out.square().sum()).backward()
            outcomes.append((out, own, [p.grad for p in net.parameters()], attributes(net)))
        same(*outcomes)


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_writes_what_forward_writes(kind):
    model = kind()
    unified = itnet.unify(model, torch.randn(3, 6), copy=True)
    inputs = [torch.randn(rows, 6) for rows in (3, 3, 5, 1, 7)]
    alike(model, unified, inputs)
    program = program_of(unified)
    assert program.current.capture.writes and not program.fallbacks
    program.original = None  # from here on no other code is run
    alike(model, unified, [torch.randn(rows, 6) for rows in (2, 4)])


@pytest.mark.parametrize("kind", [Looks, Carries])
def test_copies_keep_states_of_their_own(kind):
    model, x = kind(), torch.randn(3, 6)
    unified = itnet.unify(model, x, copy=True)
    for net in (model, unified):
        with torch.no_grad():
            net(x)
    twin, other = copy.deepcopy(unified), copy.deepcopy(model)
    alike(model, unified, [x, x])
    alike(other, twin, [x])
    torch.testing.assert_close(
        itnet.unify(twin.to(torch.bfloat16), x.bfloat16())(x.bfloat16()), other.to(torch.bfloat16)(x.bfloat16())
    )


class Grows(Base):
    def forward(self, x):
        self.h = x.detach() if self.h is None else torch.cat([self.h, x.detach()])
        return self.fc(self.h)


class AsksItsShape(Base):
    """Begins anew where the batch has changed."""

    def forward(self, x):
        if self.h is None or self.h.shape[0] != x.shape[0]:
            self.h = torch.zeros_like(x)
        self.h = self.h.detach() * 0.5 + self.fc(x)
        return self.h * 2


class Decides(Base):
    def __init__(self):
        super().__init__()
        self.h = torch.zeros(())

    def forward(self, x):
        y = self.fc(x) * 2 if float(self.h) > 2 else self.fc(x)
        self.h = self.h + 1
        return y


class Counts(Base):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.h = self.fc(x)
        return self.h / self.calls


class Moves(Base):
    """The state before the last one."""

    def forward(self, x):
        self.h, self.previous = self.fc(x), self.h
        return self.h * 2


class AsksItsType(Base):
    def forward(self, x):
        again = isinstance(self.h, torch.Tensor)
        self.h = self.fc(x)
        return self.h * 2 if again else self.h


class Sometimes(Base):
    def forward(self, x):
        if x.shape[0] > 4:
            self.h = x * 2
        return self.fc(x)


@pytest.mark.parametrize("kind", [Grows, AsksItsShape, Decides, Counts, Moves, AsksItsType, Sometimes])
def test_what_depends_on_the_past_stays_as_it_is(kind):
    model = kind()
    unified = itnet.unify(model, torch.randn(3, 6), copy=True)
    alike(model, unified, [torch.randn(rows, 6) for rows in (3, 3, 5, 5, 3, 1, 7)])


def test_a_state_that_is_taken_away_or_replaced_counts():
    model = Carries()
    unified = itnet.unify(model, torch.randn(3, 6), copy=True)
    alike(model, unified, [torch.randn(3, 6)] * 3)
    for change in (
        lambda net: setattr(net, "h", torch.ones(6)),
        lambda net: setattr(net, "h", torch.ones(1, 6)),
        lambda net: setattr(net, "c", torch.ones(6, dtype=torch.float64)),
        lambda net: setattr(net, "h", net.c),
    ):
        change(model)
        change(unified)
        alike(model, unified, [torch.randn(3, 6)] * 3)


def test_compiled_it_writes_too():
    model, x = Looks(), torch.randn(3, 6)
    unified = itnet.unify(model, x, copy=True)
    compiled = torch.compile(unified, backend="eager")
    for _ in range(3):
        torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(unified.h, model.h)
