"""Sums of shifted copies in many spellings, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = ["NEAR_MISSES", "SPELLINGS", "Program", "Shifts"]

C = 4


@dataclass(frozen=True)
class Program:
    """A function of (module, x) with x [N, C, H, W]; the module has weights.

    Attributes:
        name: What is written.
        function: The forward.
        reason: Of a near miss, a part of the reason given, if any.
        count: Sums of shifted copies that are to be found.
        mixes: Of a near miss: whether what is left alone counts as mixing positions.
    """

    name: str
    function: Callable[[nn.Module, Tensor], object]
    reason: str = ""
    count: int = 1
    mixes: bool = False

    def __str__(self) -> str:
        return self.name


class Shifts(nn.Module):
    """A convolution in front, so that axes are known, and weights for all programs."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.before = nn.Conv2d(C, C, 1)
        self.mu = nn.Parameter(torch.rand(C, 1, 1))
        self.nu = nn.Parameter(torch.rand(C, 1, 1))
        self.last = nn.Parameter(torch.rand(C))
        self.place = nn.Parameter(torch.rand(5, 7))
        self.scale = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> object:
        return self.program.function(self, self.before(x))


def _laplacian(m, x):
    z = pad(x, (1, 1, 1, 1))
    return z[:, :, 2:, 1:-1] + z[:, :, :-2, 1:-1] + z[:, :, 1:-1, 2:] + z[:, :, 1:-1, :-2] - 4 * x


def _periodic_laplacian(m, x):
    return sum(x.roll(by, axis) for axis in (2, 3) for by in (1, -1)) - 4 * x


def _token_shift(m, x):
    tokens = x.flatten(2).transpose(1, 2)
    shifted = nn.ZeroPad2d((0, 0, 1, -1))(tokens)
    return tokens * m.last + shifted * (1 - m.last)


def _token_shift_thrice(m, x):
    shifted = pad(x, (0, 0, 1, -1))
    return [x * mu + shifted * (1 - mu) for mu in (m.mu, m.nu, m.scale)]


def _token_shift_by_difference(m, x):
    return x + (torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], 2) - x) * m.mu


def _temporal_shift(m, x):
    ahead = torch.cat([x[:, :1, 1:], torch.zeros_like(x[:, :1, :1])], 2)
    behind = torch.cat([torch.zeros_like(x[:, 1:2, :1]), x[:, 1:2, :-1]], 2)
    return torch.cat([ahead, behind, x[:, 2:]], 1)


def _shifted_parts(m, x):
    a, b, c, d = x.chunk(4, 1)
    return torch.cat([a.roll(1, 2), b.roll(-1, 2), c.roll(1, 3), d.roll(-1, 3)], 1)


def _axial_shift(m, x):
    parts = [part.roll(by, 3) for part, by in zip(x.split(1, 1), (-1, 0, 1, 2), strict=True)]
    return torch.cat(parts, 1)


def _sobel(m, x):
    z = pad(x, (1, 1, 1, 1))
    left, right = z[..., :-2], z[..., 2:]
    d = right - left
    return 0.25 * d[..., :-2, :] + 0.5 * d[..., 1:-1, :] + 0.25 * d[..., 2:, :]


SPELLINGS = [
    Program("forward difference", lambda m, x: x[..., 1:] - x[..., :-1]),
    Program("central difference, padded", lambda m, x: (pad(x, (1, 1))[..., 2:] - pad(x, (1, 1))[..., :-2]) / 2),
    Program("torch.diff", lambda m, x: torch.diff(x, dim=2)),
    Program("second differences", lambda m, x: torch.diff(torch.diff(x)), count=2),
    Program("second differences at once", lambda m, x: x[..., 2:] - 2 * x[..., 1:-1] + x[..., :-2]),
    Program("narrow", lambda m, x: x.narrow(2, 1, x.shape[2] - 1).add(x.narrow(2, 0, x.shape[2] - 1), alpha=0.5)),
    Program("Laplacian by pad and slices", _laplacian),
    Program("Laplacian by roll", _periodic_laplacian),
    Program("roll over two axes at once", lambda m, x: x.roll((1, -1), (2, 3)) + x * m.scale),
    Program("roll of a roll", lambda m, x: x.roll(1, 2).roll(1, 2) - x),
    Program("token shift", _token_shift),
    Program("token shift for three", _token_shift_thrice, count=3),
    Program("token shift by a difference", _token_shift_by_difference),
    Program("token shift by lerp", lambda m, x: torch.lerp(x, pad(x, (1, -1)), m.mu)),
    Program("lerp with a number", lambda m, x: torch.lerp(pad(x, (-1, 1)), x, 0.25)),
    Program("temporal shift", _temporal_shift),
    Program("shifted parts of the channels", _shifted_parts),
    Program("axial shift", _axial_shift),
    Program("moving average", lambda m, x: (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / 3),
    Program("Sobel", _sobel, count=2),
    Program("larger than what it is of", lambda m, x: pad(x, (2, 0)) - pad(x, (0, 2))),
    Program("rsub", lambda m, x: torch.rsub(x, x.roll(2, 2), alpha=3)),
]


def _rotary(m, x):
    first, second = x.chunk(2, 1)
    turned = torch.cat([-second, first], 1)
    return x * m.mu + turned * m.nu


NEAR_MISSES = [
    Program("roll alone", lambda m, x: x.roll(1, 2)),
    Program("shift alone", lambda m, x: pad(x, (1, -1))),
    Program("roll by slices", lambda m, x: torch.cat([x[..., 2:], x[..., :2]], 3), "no two of them meet"),
    Program("twice in a row", lambda m, x: torch.cat([x, x], 2), "no two of them meet"),
    Program("one offset, two borders", lambda m, x: x.roll(1, 3) + pad(x, (1, -1))),
    Program("halves of the features", lambda m, x: x[:, :2] + x[:, 2:], "not proven to be a position axis"),
    Program("rotated features", _rotary, "not proven to be a position axis"),
    Program("two tensors", lambda m, x: x.roll(1, 2) + x.square(), "is no copy of what is added to it"),
    Program("another sample", lambda m, x: x + x.roll(1, 0), "not proven to be a position axis"),
    Program("reflected", lambda m, x: pad(x, (1, 1, 0, 0), mode="reflect")[..., 2:] - x, "is no copy of what"),
    Program("flipped", lambda m, x: x.flip(3) + x, "is no copy of what is added to it"),
    Program("every other one", lambda m, x: x[..., :-1:2] + x[..., 1::2], "is no copy of what is added to it"),
    Program("product", lambda m, x: x * x.roll(1, 3)),
    Program("part of a roll", lambda m, x: x + pad(x[..., 1:-1], (1, 1)).roll(1, 3), "a part of a tensor is rolled"),
    Program("zeros at the border", lambda m, x: pad(x[..., 2:-1], (1, 2)) - x, "a copy is cut off", mixes=True),
    Program("rolled and padded", lambda m, x: x.roll(1, 3) + pad(x, (-1, 1)), "some copies are rolled", mixes=True),
    Program("half of it", lambda m, x: x + x.roll(x.shape[3] // 2, 3), "depends on sizes", mixes=True),
    Program("weights by place", lambda m, x: x * m.place + x.roll(1, 3) * m.place, "weight", mixes=True),
]
