"""Traps for weights: parametrizations, ties, lazy modules, extra state, lists of parameters."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from .table import call, trap

G = torch.Generator().manual_seed(7)
X = torch.randn(4, 6, generator=G)
IMAGE = torch.randn(2, 3, 6, 6, generator=G)
IDS = torch.randint(0, 9, (2, 5), generator=G)


@trap(IMAGE, expect="any", pickles=False)
class WeightNorm(nn.Sequential):
    """Loses the gradient to magnitude and direction, or the class that parametrization makes at run time."""

    def __init__(self):
        super().__init__(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten())


@trap(X, expect="any", pickles=False)
class SpectralNorm(nn.Sequential):
    """Loses the power iteration: each call in train mode moves the buffers _u and _v."""

    def __init__(self):
        super().__init__(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 2))


@trap(X, expect="any", pickles=False)
class Orthogonal(nn.Sequential):
    """Loses the matrix exponential that keeps a weight orthogonal."""

    def __init__(self):
        super().__init__(parametrizations.orthogonal(nn.Linear(6, 6)), nn.Linear(6, 2))


@trap(X, parts=["2"], expect="any")
class WeightNormByHook(nn.Sequential):
    """Loses the pre-forward hook that computes the weight, which is a plain attribute."""

    def __init__(self):
        super().__init__(nn.utils.weight_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 2))


@trap(X, expect="any")
class SpectralNormByHook(nn.Module):
    """Loses the pre-forward hook that runs the power iteration."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.utils.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.norm(x))


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).mT


@trap(X, expect="any", pickles=False)
class CustomParametrization(nn.Module):
    """Loses a parametrization of the user's own, also where the weight is read twice."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        parametrize.register_parametrization(self.fc, "weight", Symmetric())

    def forward(self, x):
        return self.fc(x) + self.fc.weight.sum()


@trap(X, expect="any", pickles=False)
class CachedParametrization(CustomParametrization):
    """Loses parametrize.cached(), under which the weight is computed once."""

    def forward(self, x):
        with parametrize.cached():
            return self.fc(self.fc(x))


@trap(IDS, casts=False)
class TiedEmbedding(nn.Module):
    """Loses the tie between embedding and head: one parameter, two names."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


@trap(IDS, casts=False)
class BorrowedWeight(nn.Module):
    """Loses a weight that is used away from its module."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)

    def forward(self, ids):
        return F.linear(self.embed(ids), self.embed.weight)


@trap(X)
class SameModuleTwice(nn.Module):
    """Loses that one module object has two names and runs twice."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.layers = nn.ModuleList([self.first] * 3)

    def forward(self, x):
        x = self.second(self.first(x))
        for layer in self.layers:
            x = layer(x)
        return x


@trap(X)
class TiedBuffers(nn.Module):
    """Loses that a buffer is shared by two modules, one of which writes it."""

    def __init__(self):
        super().__init__()
        self.writer, self.reader = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.reader.running_mean = self.writer.running_mean
        self.reader.eval()

    def train(self, mode=True):
        super().train(mode)
        self.reader.eval()
        return self

    def forward(self, x):
        return self.reader(self.writer(x))


@trap(X, casts=False, expect="any")
class LazyLinear(nn.Module):
    """Loses the shapes that the first call decides, and the classes that it changes."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.LazyLinear(2)

    def forward(self, x):
        return self.second(self.norm(self.first(x)).relu())


@trap(IMAGE, casts=False, expect="any")
class LazyConvolution(nn.Sequential):
    """Loses the number of channels that the first call decides."""

    def __init__(self):
        super().__init__(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


@trap(X, expect="any")
class ExtraState(nn.Module):
    """Loses get_extra_state: a version and a count that travel with the checkpoint."""

    def __init__(self):
        super().__init__()
        self.fc, self.count = nn.Linear(6, 6), 3

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]

    def forward(self, x):
        return self.fc(x) * self.count


@trap(X)
class Lists(nn.Module):
    """Loses parameters in a ParameterList and a ParameterDict."""

    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList([torch.randn(6), torch.randn(6)])
        self.named = nn.ParameterDict({"up": torch.randn(6, 8), "down": torch.randn(8, 6)})

    def forward(self, x):
        for scale in self.scales:
            x = x * scale
        return (x @ self.named["up"]).relu() @ self.named["down"]


@trap(X)
class Buffers(nn.Module):
    """Loses persistence: some buffers are saved and some are not; an integer one stays integer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.randn(6))
        self.register_buffer("made", torch.randn(6), persistent=False)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 5, 4]))

    def forward(self, x):
        return (x * self.kept + self.made)[:, self.order]


@trap(X)
class TensorAttribute(nn.Module):
    """Loses a tensor that is a plain attribute: neither saved nor cast."""

    def __init__(self):
        super().__init__()
        self.fc, self.offset = nn.Linear(6, 6), torch.randn(6)
        self.table = {"scale": torch.randn(6)}

    def forward(self, x):
        return self.fc(x) * self.table["scale"] + self.offset


@trap(X)
class Functional(nn.Module):
    """Loses a model without any parameter."""

    def forward(self, x):
        return F.layer_norm(x, (6,)).softmax(-1).cumsum(0)


@trap(X)
class ViewsOfOneParameter(nn.Module):
    """Loses that weights are slices of one flat parameter."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Parameter(torch.randn(6 * 8 + 8))

    def forward(self, x):
        weight, bias = self.flat.split([48, 8])
        return F.linear(x, weight.view(8, 6), bias)


@trap(X, expect="any")
class WeightMadeInForward(nn.Module):
    """Loses a weight that a child makes from another input (a hyper-network), set as a plain attribute."""

    def __init__(self):
        super().__init__()
        self.make, self.weight = nn.Linear(6, 36), None

    def forward(self, x):
        self.weight = self.make(x.mean(0)).view(6, 6)
        x = x @ self.weight
        self.weight = None
        return x


@trap(X)
class Quantised(nn.Module):
    """Loses integer weights that are unpacked by hand, with a scale."""

    def __init__(self):
        super().__init__()
        self.register_buffer("packed", torch.randint(-128, 127, (6, 6), dtype=torch.int8))
        self.scale = nn.Parameter(torch.rand(6, 1))

    def forward(self, x):
        return x @ (self.packed.to(x.dtype) * self.scale).T


@trap(call(X), expect="any")
class WeightChangedInForward(nn.Module):
    """Loses a weight that forward itself renormalises in place (max-norm)."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        with torch.no_grad():
            self.fc.weight.data.renorm_(2, 0, 0.5)
        return self.fc(x)
