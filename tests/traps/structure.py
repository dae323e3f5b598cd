"""Traps for structure: modules out of sight, classes with a will of their own, recursion, instances with a forward."""

import functools
import types
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from .table import call, trap

G = torch.Generator().manual_seed(9)
X = torch.randn(4, 6, generator=G)


def mlp():
    return nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(x)


@trap(X, expect="any")
class ModulesInList(Layer):
    """Loses modules in a plain list: they have parameters that no optimizer sees, and no mode."""

    def __init__(self):
        super().__init__()
        self.hidden, self.table = [nn.Linear(6, 6), nn.BatchNorm1d(6)], {"last": nn.Linear(6, 2)}

    def forward(self, x):
        for layer in self.hidden:
            x = layer(x)
        return self.table["last"](self.fc(x))


@trap(X)
class Slices(nn.Module):
    """Loses containers made in forward: slices of a Sequential share its modules."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 6))

    def forward(self, x):
        low = self.body[:2](x)
        return self.body[2:](low), nn.Sequential(*reversed(self.body[2:]))(low), nn.ReLU()(x)


@trap(X)
class PartlyFrozen(nn.Module):
    """Loses that one child stays in eval mode while the rest trains."""

    def __init__(self):
        super().__init__()
        self.frozen, self.free = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        return self.drop(self.free(self.frozen(x)))


@trap(X, expect="any")
class SwitchesMode(nn.Module):
    """Loses that forward itself switches a child to eval mode and back."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        mode = self.norm.training
        self.norm.eval()
        x = self.norm(self.fc(x))
        self.norm.train(mode)
        return x


class Base(Layer):
    def forward(self, x, scale=1.0):
        return self.fc(x) * scale


class Middle(Base):
    def forward(self, x, scale=1.0, *, shift=0.5):
        return super().forward(x, scale) + shift


@trap(X, then=[call(X), call(X, 2.0), call(X, shift=1.0)])
class SuperForward(Middle):
    """Loses the forward of base classes, whose parameters differ."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, x, *args, **kwargs):
        return self.head(super().forward(x, *args, **kwargs))


@trap(call(X, 3), then=[call(X, depth) for depth in (3, 1, 0)])
class Recursive(Layer):
    """Loses that the model calls itself."""

    def forward(self, x, depth):
        return x if depth == 0 else self(self.fc(x).tanh(), depth - 1)


class Tree(Layer):
    def __init__(self, depth):
        super().__init__()
        self.left, self.right = (Tree(depth - 1), Tree(depth - 1)) if depth else (None, None)

    def forward(self, x):
        x = self.fc(x)
        return x if self.left is None else self.left(x) - self.right(x)


@trap(X)
class RecursiveTree(Tree):
    """Loses branches of a tree of modules of one class."""

    def __init__(self):
        super().__init__(2)


@trap(X, then=[call(X), call(X, n=2)])
class OverridesCall(Layer):
    """Loses what __call__ does around forward."""

    def __call__(self, x, n=1):
        for _ in range(n):
            x = super().__call__(x)
        return {"result": x * 2}


class Noisy(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) + 1


@trap(X)
class ChildOverridesCall(nn.Sequential):
    """Loses what the __call__ of a child does."""

    def __init__(self):
        super().__init__(Noisy(6, 6), nn.ReLU(), Noisy(6, 6))


@trap(X)
class Properties(Layer):
    """Loses attributes that are computed: properties, a cached one, class attributes."""

    bias = 0.25

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(6))

    @property
    def scale(self):
        return F.softplus(self.raw)

    @functools.cached_property
    def width(self):
        return self.fc.in_features**0.5

    def forward(self, x):
        return self.fc(x) * self.scale / self.width + self.bias


@trap(X, expect="any")
class Delegates(Layer):
    """Loses __getattr__: what the model does not have, its child has."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("fc"), name)

    def forward(self, x):
        return self.fc(x) / self.in_features + F.linear(x, self.weight)


@trap(X, expect="any")
class InterceptsSet(Layer):
    """Loses __setattr__: every attribute written is noted."""

    def __init__(self):
        object.__setattr__(self, "log", [])
        super().__init__()
        self.rate = 2.0

    def __setattr__(self, name, value):
        self.log.append(name)
        super().__setattr__(name, value)

    def forward(self, x):
        return self.fc(x) * self.rate


def triple(self, x):
    return self.fc(x) * 3


def make_patched(cls):
    model = cls()
    model.forward = types.MethodType(triple, model)
    model.child.forward = functools.partial(triple, model.child)
    return model


@trap(X, make=make_patched, expect="any", pickles=False)
class InstanceForward(Layer):
    """Loses a forward that was put on instances: on the root and on a child."""

    def __init__(self):
        super().__init__()
        self.child = Layer()


class WithChild(Layer):
    def __init__(self):
        super().__init__()
        self.child = Layer()

    def forward(self, x):
        return self.child(self.fc(x))


@trap(X, expect="any", pickles=False)
class ChildForwardWrapped(WithChild):
    """Loses the wrapper around a child's forward; a deep copy keeps the old child in it, as torch does."""

    def __init__(self):
        super().__init__()
        self.child.forward = functools.partial(triple, self.child)


@trap(X, expect="any")
class CallsMethods(nn.Module):
    """Loses methods other than forward that do the work."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(), mlp()

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder.forward(z)

    def forward(self, x):
        return self.decode(self.encode(x))


@trap(X)
class Slots(Layer):
    """Loses nothing: a class with annotations and slots of its own."""

    __constants__ = ["rate"]
    rate: float

    def __init__(self):
        super().__init__()
        self.rate = 0.5

    def forward(self, x):
        return self.fc(x) * self.rate


class Config:
    def __init__(self):
        self.scale, self.flags = 2.0, {"relu": True}


@trap(X)
class ConfigObject(Layer):
    """Loses settings in a plain object that the model refers to."""

    def __init__(self):
        super().__init__()
        self.config = Config()

    def forward(self, x):
        x = self.fc(x) * self.config.scale
        return x.relu() if self.config.flags["relu"] else x


@trap(X)
class Parent(Layer):
    """Loses a reference from a child to its parent, which is no sub-module."""

    def __init__(self):
        super().__init__()
        self.child = Child(self)

    def forward(self, x):
        return self.child(x)


class Child(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.__dict__["parent"] = parent

    def forward(self, x):
        return self.parent.fc(x) * 2


@trap(X)
class LambdaLayer(nn.Module):
    """Loses a function stored on the model, chosen by name."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.norm = nn.Linear(6, 6), getattr(F, "silu"), functools.partial(F.layer_norm, eps=1e-3)  # noqa: B009

    def forward(self, x):
        return self.norm(self.act(self.fc(x)), (6,))


@trap(X, expect="any")
class Prints(Layer):
    """Loses a warning that forward gives at every call."""

    def forward(self, x):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            warnings.warn("mind the gap", stacklevel=2)
        return self.fc(x) * len(seen)


@trap(X, parts=["fc"], expect="any")
class ReplacesChild(nn.Module):
    """Loses a child that forward itself replaces after the first call."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.head(self.fc(x))
        self.head = nn.Identity()
        return x


@trap(X, parts=["layers.0", "layers.1"], expect="any")
class GrowsModules(nn.Module):
    """Loses modules that forward appends."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        self.layers.append(nn.Linear(6, 6))
        return x
