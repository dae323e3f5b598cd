"""Traps for state: buffers that forward writes, caches, counters, lists, and things kept for a look."""

import torch
from torch import nn

from .table import call, trap

G = torch.Generator().manual_seed(2)
X = torch.randn(4, 6, generator=G)
IMAGE = torch.randn(3, 4, 5, 5, generator=G)
STEPS = [call(torch.randn(2, n, 6, generator=G)) for n in (3, 1, 2)]


def layers():
    """More than one layer, so that there is something to capture."""
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())


@trap(IMAGE, parts=["conv"], expect="whole", training="any")
class BatchNormCounts(nn.Module):
    """Loses num_batches_tracked, or counts capture as a batch; momentum=None averages with it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, momentum=None)
        self.plain = nn.BatchNorm2d(6, track_running_stats=False)

    def forward(self, x):
        return self.plain(self.norm(self.conv(x)))


@trap(X)
class AverageInPlace(nn.Module):
    """Loses the moving average that is written in place, or starts it from capture."""

    def __init__(self):
        super().__init__()
        self.fc = layers()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        x = self.fc(x)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


@trap(X)
class AverageUnderNoGrad(nn.Module):
    """Loses an update inside a no_grad block, in train and eval mode alike."""

    def __init__(self):
        super().__init__()
        self.fc = layers()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def forward(self, x):
        x = self.fc(x)
        with torch.no_grad():
            self.count += 1
            self.mean.lerp_(x.mean(0), 1.0 / self.count)
        return x - self.mean


@trap(X, expect="whole", training="any")
class AverageReassigned(nn.Module):
    """Loses self.mean = …: a new tensor in the place of the buffer, in train mode."""

    def __init__(self):
        super().__init__()
        self.fc = layers()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        x = self.fc(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


@trap(X, expect="any")
class BufferReassigned(nn.Module):
    """Loses a recurrent state that is re-assigned in both modes."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(6, 6)
        self.register_buffer("state", torch.zeros(4, 6))

    def forward(self, x):
        self.state = self.cell(x, self.state).detach()
        return self.state.clone()


@trap(X, expect="any")
class DataCopied(nn.Module):
    """Loses a copy_ into a parameter's data: an averaged teacher inside the model."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.mul_(0.9).add_(fast, alpha=0.1)
        return self.student(x), self.teacher(x)


@trap(STEPS[0], then=STEPS[1:], parts=["query", "out"])
class CacheOfTensors(nn.Module):
    """Loses keys and values kept as attributes: the second call must see the first."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (layers() for _ in range(4))
        self.keys = self.values = None

    def forward(self, x):
        k, v = self.key(x).detach(), self.value(x).detach()
        self.keys = k if self.keys is None else torch.cat([self.keys, k], 1)
        self.values = v if self.values is None else torch.cat([self.values, v], 1)
        return self.out(nn.functional.scaled_dot_product_attention(self.query(x), self.keys, self.values))


@trap(STEPS[0], then=STEPS[1:], parts=["embed", "out"])
class CacheInList(nn.Module):
    """Loses a cache in a list on the module, which grows in place."""

    def __init__(self):
        super().__init__()
        self.embed, self.out, self.past = layers(), layers(), []

    def forward(self, x):
        self.past.append(self.embed(x).detach())
        return self.out(torch.cat(self.past, 1).mean(1))


class Store:
    """A plain object with tensors inside."""

    def __init__(self):
        self.keys, self.length = None, 0

    def update(self, keys):
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], 1)
        self.length += keys.shape[1]
        return self.keys


@trap(STEPS[0], then=STEPS[1:], parts=["embed", "out"])
class CacheInObject(nn.Module):
    """Loses a cache in a plain Python object, or lets the original see what the unified model cached."""

    def __init__(self):
        super().__init__()
        self.embed, self.out, self.store = layers(), layers(), Store()

    def forward(self, x):
        keys = self.store.update(self.embed(x).detach())
        return self.out(keys).mean(1) / self.store.length


@trap(STEPS[1], then=[STEPS[1]] * 3)
class StaticCache(nn.Module):
    """Loses writes at a moving position of a preallocated cache."""

    def __init__(self):
        super().__init__()
        self.embed = layers()
        self.register_buffer("cache", torch.zeros(2, 24, 6), persistent=False)
        self.register_buffer("position", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        self.cache.index_copy_(1, self.position, self.embed(x).detach())
        self.position += 1
        return self.cache.sum(1)


@trap(X, parts=["fc"])
class CallCounter(nn.Module):
    """Loses a count of calls that is only there to be read."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls = layers(), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x)


@trap(X, then=[call(X)] * 5, parts=["fc"])
class WarmUp(nn.Module):
    """Loses a schedule driven by the count of calls."""

    def __init__(self):
        super().__init__()
        self.fc, self.step = layers(), 0

    def forward(self, x):
        scale = min(1.0, (self.step + 1) / 4)
        self.step += 1
        return self.fc(x) * scale


@trap(X, parts=["0.fc", "1.fc"])
class CountersBelow(nn.Sequential):
    """Loses counters inside sub-modules of a container that writes nothing itself."""

    def __init__(self):
        super().__init__(CallCounter(), CallCounter())


class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self._cos = None

    def forward(self, x):
        n = x.shape[1]
        if self._cos is None or self._cos.shape[0] < n:
            self._cos = torch.cos(torch.arange(n, dtype=x.dtype)[:, None] * torch.ones(6))
        return x * self._cos[:n]


LENGTHS = [call(torch.randn(2, n, 6, generator=G)) for n in (3, 5, 2, 7)]


@trap(LENGTHS[0], then=LENGTHS[1:], parts=["embed", "out"], expect="any")
class CachedTable(nn.Module):
    """Loses a table cached at the first length, when a longer one comes."""

    def __init__(self):
        super().__init__()
        self.embed, self.rotary, self.out = layers(), Rotary(), layers()

    def forward(self, x):
        return self.out(self.rotary(self.embed(x)))


@trap(STEPS[0], then=STEPS[1:])
class LastAttention(nn.Module):
    """Loses the weights kept for a picture."""

    def __init__(self):
        super().__init__()
        self.query, self.key = layers(), layers()
        self.last_attention = None

    def forward(self, x):
        weights = torch.softmax(self.query(x) @ self.key(x).mT, -1)
        self.last_attention = weights.detach()
        return weights @ x


@trap(X, parts=["layers.0", "layers.1"])
class FeatureList(nn.Module):
    """Loses features appended to a list that is cleared at every call."""

    def __init__(self):
        super().__init__()
        self.layers, self.features = nn.ModuleList(layers() for _ in range(2)), []

    def forward(self, x):
        self.features.clear()
        for layer in self.layers:
            x = layer(x)
            self.features.append(x.detach())
        return x


@trap(X, parts=["fc"])
class DictOfTensors(nn.Module):
    """Loses an entry written into a dict on the module."""

    def __init__(self):
        super().__init__()
        self.fc, self.seen = layers(), {"last": None, "count": 0}

    def forward(self, x):
        self.seen["count"] += 1
        self.seen["last"] = x.detach().mean()
        return self.fc(x)


@trap(X, parts=["expert"], expect="any")
class AuxiliaryLoss(nn.Module):
    """Loses a loss kept on the module, with its graph: the trainer adds it after the call."""

    def __init__(self):
        super().__init__()
        self.gate, self.expert = nn.Linear(6, 2), layers()
        self.loss = torch.zeros(())

    def forward(self, x):
        gate = self.gate(x).softmax(-1)
        self.loss = gate.mean(0).pow(2).sum().detach()
        return self.expert(x) * gate[:, :1]


@trap(X, then=[call(X), call(2 * X), call(X.abs())], expect="any")
class FirstCallInitialises(nn.Module):
    """Loses a data-dependent initialisation at the first call (act norm)."""

    def __init__(self):
        super().__init__()
        self.fc, self.scale, self.ready = layers(), nn.Parameter(torch.ones(6)), False

    def forward(self, x):
        x = self.fc(x)
        if not self.ready:
            with torch.no_grad():
                self.scale.copy_(1 / (x.std(0) + 1e-5))
            self.ready = True
        return x * self.scale


@trap(X, expect="any")
class AddedLater(nn.Module):
    """Loses a buffer registered by the first call, and its key in the state dict."""

    def __init__(self):
        super().__init__()
        self.fc = layers()

    def forward(self, x):
        x = self.fc(x)
        if not hasattr(self, "offset"):
            self.register_buffer("offset", x.detach().mean(0))
        return x - self.offset


@trap(X)
class OptionalBuffer(nn.Module):
    """Loses a buffer and a parameter that are None."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6, bias=False)
        self.register_buffer("mask", None)
        self.register_parameter("scale", None)

    def forward(self, x):
        x = self.fc(x) if self.scale is None else self.fc(x) * self.scale
        return x if self.mask is None else x * self.mask


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("bank", torch.zeros(8, 6))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))


@trap(X, expect="any")
class WritesIntoAnother(nn.Module):
    """Loses what one module writes into a buffer of another (a queue of negatives)."""

    def __init__(self):
        super().__init__()
        self.fc, self.memory = layers(), Memory()

    def forward(self, x):
        x = self.fc(x)
        logits = x @ self.memory.bank.clone().T
        with torch.no_grad():
            start = int(self.memory.pointer)
            self.memory.bank[start : start + 4] = x
            self.memory.pointer.fill_((start + 4) % 8)
        return logits


@trap(X, parts=["fc"])
class WritesOnAnother(nn.Module):
    """Loses a plain attribute that a parent writes on its child."""

    def __init__(self):
        super().__init__()
        self.fc = layers()
        self.fc.uses = 0

    def forward(self, x):
        self.fc.uses += 1
        return self.fc(x) / self.fc.uses
