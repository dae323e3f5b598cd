"""Convolutions that programs write with ``unfold``, in many spellings, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import fold, pad, unfold

__all__ = ["NEAR_MISSES", "SPELLINGS", "Program", "Windows"]

C, M, G, K = 4, 6, 2, 3


@dataclass(frozen=True)
class Program:
    """A function of (module, x); the module has weights.

    Attributes:
        name: What is written.
        function: The forward.
        shape: Of x.
        family: Of the integral that is to be found; empty for near misses.
        reason: Of a near miss, a part of the reason given.
        channels: Axis of the channels, if any.
    """

    name: str
    function: Callable[[nn.Module, Tensor], Tensor]
    shape: tuple[int, ...] = (2, C, 8, 7)
    family: str = "stationary"
    reason: str = ""
    channels: int | None = 1

    def __str__(self) -> str:
        return self.name


class Windows(nn.Module):
    """Weights for all programs."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.weight = nn.Parameter(torch.randn(M, C, K, K) * 0.2)
        self.grouped = nn.Parameter(torch.randn(G, M // G, C // G * K * K) * 0.2)
        self.line = nn.Parameter(torch.randn(C, K) * 0.5)
        self.taps = nn.Parameter(torch.randn(K) * 0.5)
        self.bias = nn.Parameter(torch.randn(M))
        self.linear = nn.Linear(C * K * K, M)
        self.narrow = nn.Linear(C * K, M)
        self.kernels = nn.Conv2d(C, G * K * K, 1)
        self.steps = nn.Linear(C, G * K)
        self.mine = nn.Parameter(torch.randn(9, M, C, K) * 0.2)
        self.scale = nn.Parameter(torch.rand(C) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if (place := self.program.channels) is None:
            return self.program.function(self, x)
        wide = [C if axis == place % x.dim() else 1 for axis in range(x.dim())]
        return self.program.function(self, x * self.scale.view(wide))


def _columns(m, x):
    columns = unfold(x, K, padding=1)
    return (m.weight.view(M, -1) @ columns).view(x.shape[0], M, *x.shape[2:])


def _columns_first(m, x):
    columns = unfold(x, K, stride=2)
    y = columns.transpose(1, 2).matmul(m.weight.view(M, -1).t()).transpose(1, 2)
    return fold(y, ((x.shape[2] - K) // 2 + 1, (x.shape[3] - K) // 2 + 1), (1, 1))


def _layer(m, x):
    return m.linear(unfold(x, K, dilation=2, padding=2).transpose(1, 2))


def _asymmetric(m, x):
    return m.weight.flatten(1) @ unfold(pad(x, (2, 0, 1, 1)), (K, K))


def _einsum(m, x):
    windows = x.unfold(2, K, 1).unfold(3, K, 1)
    return torch.einsum("bchwij,ocij->bohw", windows, m.weight) + m.bias.view(-1, 1, 1)


def _einsum_strided(m, x):
    windows = x.unfold(2, K, 2).unfold(3, K, 2).contiguous()
    return torch.einsum("nchwij,ocij->nhwo", windows, m.weight)


def _flattened(m, x):
    windows = x.unfold(2, K, 1).unfold(3, K, 1)
    b, c, h, w = windows.shape[:4]
    rows = windows.permute(0, 2, 3, 1, 4, 5).reshape(b * h * w, c * K * K)
    return (rows @ m.weight.view(M, -1).t()).view(b, h, w, M).permute(0, 3, 1, 2)


def _addmm(m, x):
    windows = x.unfold(2, K, 1).unfold(3, K, 1)
    b, c, h, w = windows.shape[:4]
    rows = windows.permute(0, 2, 3, 1, 4, 5).reshape(b * h * w, c * K * K)
    return torch.addmm(m.bias, rows, m.weight.view(M, -1).t()).view(b, h, w, M)


def _groups(m, x):
    columns = unfold(x, K, padding=1)
    columns = columns.view(x.shape[0], G, C // G * K * K, -1)
    return (m.grouped @ columns).view(x.shape[0], M, *x.shape[2:])


def _depthwise(m, x):
    return (pad(x, (K - 1, 0)).unfold(-1, K, 1) * m.line.unsqueeze(1)).sum(-1)


def _filter(m, x):
    return x.unfold(-1, K, 2) @ m.taps


def _frames(m, x):
    """Batch, time, features: windows of frames spliced and projected (TDNN)."""
    windows = x.unfold(1, K, 1)
    return m.narrow(windows.flatten(2))


def _reversed(m, x):
    """Taps first."""
    windows = x.unfold(1, K, 1).permute(3, 0, 1, 2)
    return torch.einsum("kbtc,ck->btc", windows, m.line)


def _involution(m, x):
    b, _, h, w = x.shape
    weight = m.kernels(x).view(b, G, K * K, h, w).unsqueeze(2)
    windows = unfold(x, K, padding=1).view(b, G, C // G, K * K, h, w)
    return (weight * windows).sum(dim=3).view(b, C, h, w)


def _dynamic(m, x):
    """DynamicConv of fairseq, its weights not normalised."""
    b, t, _ = x.shape
    weight = m.steps(x).view(b, t, G, K)
    windows = pad(x, (0, 0, K - 1, 0)).unfold(1, K, 1).view(b, t, G, C // G, K)
    return torch.einsum("btgk,btgck->btgc", weight, windows).flatten(2)


def _local(m, x):
    """Locally connected: every place has weights of its own."""
    return torch.einsum("bcpk,pock->bop", x.unfold(2, K, 2), m.mine)


def _sampled(m, x):
    """One kernel for each sample, from a pooled feature."""
    weight = m.line * torch.sigmoid(x.mean((1, 2)))[:, None, None]
    return torch.einsum("btck,bck->btc", x.unfold(1, K, 1), weight)


SPELLINGS = [
    Program("weight @ unfold", _columns),
    Program("unfold transposed, fold back", _columns_first),
    Program("a linear layer of unfold", _layer),
    Program("padded on one side", _asymmetric),
    Program("einsum of two unfolds", _einsum),
    Program("einsum, strided, channels last", _einsum_strided),
    Program("rows of windows", _flattened),
    Program("addmm", _addmm),
    Program("groups", _groups),
    Program("depthwise causal", _depthwise, (2, C, 9)),
    Program("one filter", _filter, (3, 11), channels=None),
    Program("spliced frames", _frames, (2, 9, C), channels=-1),
    Program("taps first", _reversed, (2, 9, C), channels=-1),
    Program("window as large as the source", _columns_first, (2, C, K, K)),
    Program("sizes alike", lambda m, x: m.weight.view(M, -1) @ unfold(x, K, padding=1), (C, C, C, C)),
    Program("one sample", _columns, (1, C, 8, 7)),
    Program("one kernel for each sample", _sampled, (2, 9, C), channels=-1),
    Program("involution", _involution, family="dense"),
    Program("dynamic convolution", _dynamic, (2, 9, C), family="dense", channels=-1),
    Program("locally connected", _local, (2, C, 19), family="dense"),
]


def _some_taps(m, x):
    windows = unfold(x, K).view(x.shape[0], C, K * K, -1)
    return torch.einsum("bckl,co->bkol", windows, m.weight[:, :, 0, 0].t())


def _over_places(m, x):
    return torch.einsum("bcpk,pock->bo", x.unfold(2, K, 2), m.mine)


def _used_twice(m, x):
    windows = unfold(x, K, padding=1)
    return m.weight.view(M, -1) @ windows + windows.sum(1, keepdim=True)


def _of_windows(m, x):
    return torch.einsum("bcpqk,k->bcpq", x.unfold(2, K, 1).unfold(2, K, 1).movedim(-2, 3), m.taps)


def _squared(m, x):
    return m.weight.view(M, -1) @ unfold(x, K).square()


def _transposed_taps(m, x):
    """A right answer needs the taps in their order; these are not."""
    return m.weight.transpose(2, 3).reshape(M, -1) @ unfold(x, K)


NEAR_MISSES = [
    Program("channels summed, taps kept", _some_taps, family="", reason="the sum does not run over all places"),
    Program("places summed too", _over_places, (2, C, 19), family="", reason="the sum runs over windows"),
    Program("windows used elsewhere", _used_twice, family="", reason="used elsewhere"),
    Program("something between", _squared, family="", reason="not proven to hold positions"),
    Program("windows of windows", _of_windows, (2, C, 19), family="", reason=""),
    Program("taps transposed", _transposed_taps, family="stationary"),
]
