"""Traps for calls: how arguments come in, what shapes results have, objects on either side."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .table import call, trap

G = torch.Generator().manual_seed(8)
X, Y = torch.randn(4, 6, generator=G), torch.randn(4, 6, generator=G)

Pair = namedtuple("Pair", ["first", "second"])


class Typed(NamedTuple):
    logits: Tensor
    hidden: Tensor | None = None


@dataclass
class Batch:
    x: Tensor
    scale: float = 2.0
    names: tuple[str, ...] = ("a", "b")


class Prediction:
    """A result with methods, which no container protocol knows."""

    def __init__(self, logits, note):
        self.logits, self.note = logits, note

    def argmax(self):
        return self.logits.argmax(-1)


def layers():
    """More than one layer, so that there is something to capture."""
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = layers()


@trap(call(X, Y), then=[call(X, Y), call(X, Y, X), call(X), call(X, Y, X, Y)])
class StarArguments(Layer):
    """Loses arguments beyond those of the example."""

    def forward(self, *xs):
        return self.fc(sum(xs)) * len(xs)


@trap(call(X, b=Y), then=[call(X, b=Y), call(X, c=Y, b=X), call(X)])
class KeywordArguments(Layer):
    """Loses the names and the order of keyword arguments."""

    def forward(self, x, **others):
        for name, other in others.items():
            x = x - other if name == "b" else self.fc(x) * other
        return self.fc(x), list(others)


@trap(call(X, scale=2.0), then=[call(X, scale=2.0), call(X, scale=3.0), call(X, scale=2), call(X)])
class KeywordOnly(Layer):
    """Loses keyword-only arguments and defaults, and the difference between 2 and 2.0."""

    def forward(self, x, *, scale=1.0, shift=None):
        x = self.fc(x) * scale
        return (x if shift is None else x + shift), scale


@trap(call(X, Y), then=[call(X, Y), call(X), call(X, other=Y)], expect="any")
class PositionalOnly(Layer):
    """Loses that `x` is positional only, and may be a keyword of **others too."""

    def forward(self, x, y=None, /, **others):
        x = self.fc(x) if y is None else self.fc(x) + y
        return x + sum(others.values())


@trap(call(X, 3), then=[call(X, n) for n in (3, 4, -1, True, 2.5)] + [call(X, torch.tensor(3))])
class NumberOrTensor(Layer):
    """Loses numbers that are no tensors: each is another graph, or Python."""

    def forward(self, x, power):
        return self.fc(x).abs() ** power


@trap(call(X, "up"), then=[call(X, kind) for kind in ("up", "down", "up")], expect="whole")
class ChosenByString(nn.Module):
    """Loses the child that another string chooses."""

    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleDict({"up": nn.Linear(6, 8), "down": nn.Linear(6, 3)})

    def forward(self, x, kind):
        return self.ways[kind](x), kind


NESTED = {"x": X, "more": [Y, (X, {"deep": Y})], "flag": True, "none": None}


@trap(call(NESTED), then=[call(NESTED), call({**NESTED, "flag": False}), call({**NESTED, "more": [Y]})])
class NestedInput(Layer):
    """Loses a leaf of a nested input, or the answer to a flag in it."""

    def forward(self, batch):
        x = self.fc(batch["x"]) + batch["more"][0]
        if len(batch["more"]) > 1:
            x = x * batch["more"][1][1]["deep"]
        return -x if batch["flag"] else x


@trap(call(X))
class NestedOutput(Layer):
    """Loses containers in the result: their types, keys, order, and what is no tensor."""

    def forward(self, x):
        y = self.fc(x)
        return {"b": [y, (x, None)], "a": OrderedDict(z=y, a=1), "pair": Pair(y, 2.5), "typed": Typed(y), "s": "text"}


@trap(call(Pair(X, Y)), expect="any")
class NamedTuples(Layer):
    """Loses the names of an argument and of a result."""

    def forward(self, pair):
        return Typed(self.fc(pair.first), pair.second), pair._replace(first=pair.second)


@trap(call(Batch(X)), then=[call(Batch(X)), call(Batch(Y, 3.0)), call(Batch(Y, names=()))], expect="any")
class DataclassInput(Layer):
    """Loses an argument that is an object."""

    def forward(self, batch):
        return Batch(self.fc(batch.x) * batch.scale, len(batch.names), batch.names)


@trap(X)
class CustomOutput(Layer):
    """Loses the class of a result, or its methods."""

    def forward(self, x):
        return Prediction(self.fc(x), "fine")


@trap(X, expect="any")
class PlainOutputs(Layer):
    """Loses results that are no tensors, or are empty."""

    def forward(self, x):
        return None, "text", x.shape[0], x.dim() == 2, x.dtype, (), [], {}, self.fc(x), x.shape


@trap(X, then=[call(X), call(X[:2]), call(X[:3])], expect="any")
class SizeOutputs(Layer):
    """Loses sizes that are results: another batch has another."""

    def forward(self, x):
        return x.shape[0], x.numel() * 2, torch.tensor(x.shape), self.fc(x)


@trap(X, expect="any")
class NoneOutput(Layer):
    """Loses that nothing is returned."""

    def forward(self, x):
        self.fc(x)


@trap(X, parts=["fc"], expect="any")
class Generator(Layer):
    """Loses laziness: a generator whose items are computed when asked for."""

    def forward(self, x):
        for _ in range(3):
            x = self.fc(x)
            yield x


@trap(X, parts=["fc"], expect="any")
class MapOutput(Layer):
    """Loses an iterator that is a result."""

    def forward(self, x):
        return map(self.fc, x.unbind())


@trap(call(X, len), expect="any", pickles=False)
class FunctionArgument(Layer):
    """Loses a callable argument: another function has another result."""

    def forward(self, x, function):
        return self.fc(x) * function(x)


@trap(call(X, size=(2, 3)), then=[call(X, size=s) for s in ((2, 3), (3, 2), [2, 3], torch.Size([6]))])
class SizeArgument(Layer):
    """Loses a shape that is an argument."""

    def forward(self, x, size):
        return self.fc(x).unflatten(-1, size), len(size)


@trap(call(X, None), then=[call(X, None), call(X, Y), call(X)])
class OptionalArgument(Layer):
    """Loses None where a tensor may come, and a tensor where None was."""

    def forward(self, x, mask=None):
        x = self.fc(x)
        return x if mask is None else x.masked_fill(mask > 0, 0)


@trap(call(X, [X, Y]), then=[call(X, [X] * n) for n in (2, 1, 3, 0)])
class ListOfTensors(Layer):
    """Loses the number of tensors in a list."""

    def forward(self, x, others):
        return self.fc(torch.stack([x, *others]).sum(0)), len(others)


@trap(call(X, X), then=[call(X, X), call(X, Y), call(X, X)])
class SameArgumentTwice(Layer):
    """Loses the answer to `x is y`."""

    def forward(self, x, y):
        return self.fc(x) if x is y else self.fc(x) + y


@trap(call(X, dtype=torch.float64, device=torch.device("cpu")), casts=False, expect="any")
class DtypeArgument(Layer):
    """Loses arguments that are dtypes and devices."""

    def forward(self, x, dtype=None, device=None):
        return self.fc(x).to(dtype=dtype, device=device), dtype, device


@trap(call(nn.Parameter(X)), expect="any")
class ParameterArgument(Layer):
    """Loses that the argument is a parameter, which is a leaf."""

    def forward(self, x):
        return self.fc(x), isinstance(x, nn.Parameter), x.is_leaf


@trap(call({1: X, 2: Y}), then=[call({1: X, 2: Y}), call({2: Y, 1: X}), call({1: X})])
class IntegerKeys(Layer):
    """Loses keys that are numbers, and their order."""

    def forward(self, batch):
        return {key: self.fc(value) * key for key, value in batch.items()}


@trap(
    call(X, mode=slice(1, 3)),
    expect="any",
    then=[call(X, mode=s) for s in (slice(1, 3), slice(None, 2), 1, Ellipsis)],
)
class IndexArgument(Layer):
    """Loses an index that is an argument."""

    def forward(self, x, mode):
        return self.fc(x)[mode]
