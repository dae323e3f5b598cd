"""Sums of shifted copies: unified against as written, forward and training step, and as written against itself.

python -m benchmarks.shifts [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import itnet
from benchmarks.measure import alternate, arguments, machine, table, typical

__all__ = ["main"]

CHANNELS = 64
HEADER = ("what", "as written ms", "unified / written", "written / written", "training: unified / written")


class Shifts(nn.Module):
    """A 1×1 convolution, so that axes are known, and one of the sums behind it."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.function = function
        self.before = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.weights = nn.ParameterList(torch.rand(CHANNELS, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """``x``: [batch, channels, height, width]."""
        return self.function(self, self.before(x))


def _token_shift(m: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """RWKV: three mixtures with one shifted copy."""
    shifted = F.pad(x, (0, 0, 1, -1))
    return [x * mu + shifted * (1 - mu) for mu in m.weights]


def _laplacian(m: nn.Module, x: Tensor) -> Sequence[Tensor]:
    z = F.pad(x, (1, 1, 1, 1))
    return [z[..., 2:, 1:-1] + z[..., :-2, 1:-1] + z[..., 1:-1, 2:] + z[..., 1:-1, :-2] - 4 * x]


def _periodic_laplacian(m: nn.Module, x: Tensor) -> Sequence[Tensor]:
    return [x.roll(1, 2) + x.roll(-1, 2) + x.roll(1, 3) + x.roll(-1, 3) - 4 * x]


def _differences(m: nn.Module, x: Tensor) -> Sequence[Tensor]:
    return [x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]]


def _channel_shift(m: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """S²-MLP: each quarter of the channels its own way."""
    a, b, c, d = x.chunk(4, 1)
    return [torch.cat([a.roll(1, 2), b.roll(-1, 2), c.roll(1, 3), d.roll(-1, 3)], 1)]


PROGRAMS = {
    "token shift": _token_shift,
    "Laplacian, zeros around": _laplacian,
    "Laplacian, periodic": _periodic_laplacian,
    "differences": _differences,
    "channel shift": _channel_shift,
}


def _step(network: nn.Module, x: Tensor) -> None:
    sum(out.square().sum() for out in network(x)).backward()  # type: ignore[union-attr]


def row(name: str, extent: int, seconds: float) -> list[str]:
    """One line of the table."""
    model, x = Shifts(PROGRAMS[name]), torch.randn(4, CHANNELS, extent, extent)
    unified = itnet.unify(model, x)
    with torch.no_grad():
        times = alternate([lambda: model(x), lambda: unified(x), lambda: model(x)], seconds=seconds)
    written, own, again = map(typical, times)
    steps = alternate([lambda: _step(model, x), lambda: _step(unified, x)], seconds=seconds)
    training = typical(steps[1]) / typical(steps[0])
    return [name, f"{written * 1e3:.2f}", f"{own / written:.2f}", f"{again / written:.2f}", f"{training:.2f}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    options = arguments(__doc__, argv)
    extent, seconds = (16, 0.2) if options.quick else (64, 5.0)
    chosen = [name for name in PROGRAMS if not options.only or name in options.only]
    print(machine() + "\n")
    print(table(HEADER, [row(name, extent, seconds) for name in chosen]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
