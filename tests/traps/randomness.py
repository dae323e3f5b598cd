"""Traps for random numbers: every generator, and control flow that hangs on a draw."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .table import trap

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))


class Layers(nn.Module):
    def __init__(self, count=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(count))
        self.head = nn.Sequential(nn.Linear(6, 2), nn.Tanh())


@trap(X)
class AddsNoise(Layers):
    """Loses the stream of torch: noise in eval mode too, in several distributions."""

    def forward(self, x):
        x = x + 0.1 * torch.randn_like(x) + torch.rand(6) + torch.empty(6).uniform_(0, 1)
        return self.head(x + torch.randint(0, 3, x.shape))


@trap(X)
class Permutes(Layers):
    """Loses a permutation drawn anew at each call."""

    def forward(self, x):
        return self.head(x[torch.randperm(x.shape[0])]), x[:, torch.randperm(6)]


@trap(X)
class Bernoulli(Layers):
    """Loses draws whose probabilities depend on the input."""

    def forward(self, x):
        p = self.head(x).sigmoid()
        return torch.bernoulli(p), torch.normal(p, 1.0), torch.multinomial(p.detach() + 0.1, 1)


@trap(X)
class DropoutKinds(nn.Module):
    """Loses the order in which several kinds of dropout draw."""

    def __init__(self):
        super().__init__()
        self.fc, self.drop, self.alpha = nn.Linear(6, 6), nn.Dropout(0.3), nn.AlphaDropout(0.2)
        self.channels = nn.Dropout1d(0.5)

    def forward(self, x):
        x = self.channels(self.drop(self.fc(x))[None])[0]
        return F.dropout(self.alpha(x), 0.1), F.dropout(x, 0.4, training=self.training)


@trap(X)
class Gumbel(Layers):
    """Loses a relaxed draw and its straight-through gradient."""

    def forward(self, x):
        logits = self.head(x)
        return F.gumbel_softmax(logits, tau=0.5), F.gumbel_softmax(logits, hard=True)


@trap(X)
class Reparametrised(Layers):
    """Loses the draw of a variational auto-encoder through torch.distributions."""

    def forward(self, x):
        mean, spread = self.head(x), self.head(x).exp()
        return torch.distributions.Normal(mean, spread, validate_args=False).rsample(), mean


@trap(X, parts=["head"])
class PythonRandom(Layers):
    """Loses random.random(): a graph would repeat one draw for ever."""

    def forward(self, x):
        return self.head(self.layers[0](x)) * random.random()


@trap(X, parts=["head"])
class PythonBranch(Layers):
    """Loses the branch not drawn."""

    def forward(self, x):
        if random.random() < 0.5:
            x = self.layers[0](x)
        return self.head(x) + random.gauss(0, 1)


@trap(X, parts=["head"])
class NumpyRandom(Layers):
    """Loses the stream of NumPy."""

    def forward(self, x):
        noise = torch.from_numpy(np.random.randn(*x.shape)).to(x.dtype)
        return self.head(x + noise)


class OwnRandom(random.Random):
    def __deepcopy__(self, memo):
        twin = OwnRandom()
        twin.setstate(self.getstate())
        return twin


@trap(X, expect="any")
class OwnGenerator(Layers):
    """Loses a generator that the model holds itself; it must go on from call to call."""

    def __init__(self):
        super().__init__()
        self.random = OwnRandom(0)

    def forward(self, x):
        return self.head(x) * self.random.random()


@trap(X, expect="whole", training="parts", parts=["head"])
class LayerDropTorch(Layers):
    """Loses layers dropped by `if torch.rand(()) < p`, in train mode."""

    def forward(self, x):
        for layer in self.layers:
            if self.training and torch.rand(()) < 0.5:
                continue
            x = layer(x)
        return self.head(x)


@trap(X, expect="whole", training="parts", parts=["head"])
class LayerDropPython(Layers):
    """Loses layers dropped by Python's generator, in train mode."""

    def forward(self, x):
        for layer in self.layers:
            if not (self.training and random.uniform(0, 1) < 0.5):
                x = layer(x)
        return self.head(x)


@trap(X)
class StochasticDepth(Layers):
    """Loses the mask per sample that timm's DropPath draws."""

    def forward(self, x):
        for layer in self.layers:
            y = layer(x)
            if self.training:
                keep = x.new_empty(x.shape[0], 1).bernoulli_(0.7)
                y = y * keep.div_(0.7)
            x = x + y
        return self.head(x)


@trap(X, expect="any")
class SeedsItself(Layers):
    """Loses manual_seed inside forward, which also moves the caller's generator."""

    def forward(self, x):
        torch.manual_seed(5)
        return self.head(x + torch.randn_like(x))


@trap(X, expect="any")
class ForksGenerator(Layers):
    """Loses fork_rng: the caller's generator stays where it was."""

    def forward(self, x):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            noise = torch.randn_like(x)
        return self.head(x + noise)


@trap(X, pickles=False, expect="any")
class PassedGenerator(Layers):
    """Loses a torch.Generator made inside forward: the same noise at every call."""

    def forward(self, x):
        return self.head(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(3)))


@trap(X, parts=["head"])
class RandomChoiceOfPath(Layers):
    """Loses the other paths of a supernet that samples one child per call."""

    def forward(self, x):
        return self.head(self.layers[random.randrange(3)](x) + self.layers[random.choice([0, 1])](x))


@trap(X, parts=["head"])
class MixupInForward(Layers):
    """Loses a mixing rate drawn from NumPy's beta distribution."""

    def forward(self, x):
        rate = float(np.random.beta(0.5, 0.5)) if self.training else random.betavariate(2, 2)
        return self.head(rate * x + (1 - rate) * x.flip(0))
