"""Operator learning: Burgers' equation by an ITNet and by neuraloperator's FNO, of as many parameters.

python -m benchmarks.burgers [--epochs 40] [--quick]
pip install --no-deps neuraloperator tensorly tensorly-torch opt-einsum requests urllib3 certifi    # for the FNO

u_t + u·u_x = ν·u_xx on a circle of length 1; from u at time 0 to u at time 1. Both learn on the same regular grid, and
are tested there and on irregular points, of which there is another random set for each sample. A Fourier transform
needs a regular grid: there the FNO gets u interpolated linearly, and its result is interpolated back.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from itnet.nn import IntegralTransform
from torch import Tensor, nn

from benchmarks.measure import machine, table

FINE, COARSE, VISCOSITY = 256, 64, 0.01
HEADER = ("network", "parameters", "training s", "training grid %", "irregular points %")


def initial(samples: int, draw: torch.Generator) -> Tensor:
    """Smooth random functions on the fine grid, (samples, FINE): a Gaussian process of covariance 625·(−Δ + 25)⁻²."""
    waves = torch.arange(FINE // 2 + 1, dtype=torch.float64)
    size = 25.0 / ((2 * math.pi * waves) ** 2 + 25.0)
    size[0] = 0.0
    noise = torch.randn(samples, len(waves), 2, generator=draw, dtype=torch.float64)
    return torch.fft.irfft(torch.view_as_complex(noise) * size, FINE) * FINE / math.sqrt(2)


def solved(u: Tensor, steps: int = 1000) -> Tensor:
    """u at time 1: Fourier modes (two thirds of them kept in products), RK4 with diffusion as an exact factor."""
    waves = 2 * math.pi * torch.arange(FINE // 2 + 1, dtype=torch.float64)
    kept = (waves <= 2 * math.pi * FINE / 3).double()
    dt = 1.0 / steps
    half = torch.exp(-VISCOSITY * waves.square() * dt / 2)

    def slope(modes: Tensor) -> Tensor:
        return -0.5j * waves * kept * torch.fft.rfft(torch.fft.irfft(modes, FINE).square())

    modes = torch.fft.rfft(u)
    for _ in range(steps):
        one = slope(modes)
        two = slope(half * (modes + dt / 2 * one))
        three = slope(half * modes + dt / 2 * two)
        four = slope(half.square() * modes + dt * half * three)
        modes = half.square() * modes + dt / 6 * (half.square() * one + 2 * half * (two + three) + four)
    return torch.fft.irfft(modes, FINE)


@dataclass(frozen=True)
class Data:
    """Functions at points: u at time 0 and 1, (B, N); places of the points, (B or 1, N), sorted, between 0 and 1."""

    before: Tensor
    after: Tensor
    places: Tensor

    def __getitem__(self, some: Tensor) -> Data:
        places = self.places if len(self.places) == 1 else self.places[some]
        return Data(self.before[some], self.after[some], places)


def regular(before: Tensor, after: Tensor) -> Data:
    """Every few points of the fine grid."""
    step = FINE // COARSE
    places = torch.arange(COARSE)[None] / COARSE
    return Data(before[:, ::step].float(), after[:, ::step].float(), places)


def irregular(before: Tensor, after: Tensor, draw: torch.Generator) -> Data:
    """As many points of the fine grid, chosen at random, others for each sample."""
    order = torch.rand(before.shape, generator=draw).argsort(1)[:, :COARSE].sort(1).values
    return Data(before.gather(1, order).float(), after.gather(1, order).float(), order / FINE)


class Operator(nn.Module):
    """x ← GELU(W·x + T(x)), as an FNO's layers are, with an integral transform T in place of the spectral convolution.

    Its kernel is of positions on a circle and of features; a point weighs as much as the arc around it.
    """

    def __init__(self, dim: int = 44, depth: int = 4) -> None:
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(1, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        # The output is to keep the amplitude of u.
        transforms = (IntegralTransform(dim, period=1.0, head_norm=False) for _ in range(depth))
        self.transforms = nn.ModuleList(transforms)
        self.skips = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.project = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, 1))

    def forward(self, data: Data) -> Tensor:
        """u at time 1, (B, N)."""
        around = data.places.roll(-1, 1) - data.places.roll(1, 1)
        weights = torch.where(around < 0, around + 1, around) / 2
        x = self.lift(data.before.unsqueeze(-1))
        for place, (transform, skip) in enumerate(zip(self.transforms, self.skips, strict=True)):
            x = skip(x) + transform(x, positions=data.places.unsqueeze(-1), weights=weights)
            x = nn.functional.gelu(x) if place + 1 < len(self.skips) else x
        return self.project(x).squeeze(-1)


class Fourier(nn.Module):
    """neuraloperator's FNO; off its grid by linear interpolation."""

    def __init__(self, width: int = 24, modes: int = 16) -> None:
        super().__init__()
        from neuralop.models import FNO

        self.net = FNO(n_modes=(modes,), in_channels=1, out_channels=1, hidden_channels=width, n_layers=4)

    def forward(self, data: Data) -> Tensor:
        """u at time 1, (B, N)."""
        grid = torch.arange(COARSE)[None] / COARSE
        if len(data.places) == 1:
            return self.net(data.before.unsqueeze(1)).squeeze(1)
        found = self.net(interpolated(data.before, data.places, grid.expand(len(data.before), -1)).unsqueeze(1))
        return interpolated(found.squeeze(1), grid.expand(len(found), -1), data.places)


def interpolated(values: Tensor, places: Tensor, wanted: Tensor) -> Tensor:
    """Piecewise linear on the circle, (B, N') at ``wanted``."""
    places = torch.cat([places[:, -1:] - 1, places, places[:, :1] + 1], 1)
    values = torch.cat([values[:, -1:], values, values[:, :1]], 1)
    right = torch.searchsorted(places, wanted.contiguous(), right=True).clamp(1, places.shape[1] - 1)
    low, high = places.gather(1, right - 1), places.gather(1, right)
    share = (wanted - low) / (high - low)
    return values.gather(1, right - 1) * (1 - share) + values.gather(1, right) * share


def error(model: nn.Module, data: Data) -> Tensor:
    """Mean over samples of the relative L2 error at the points."""
    return ((model(data) - data.after).norm(dim=1) / data.after.norm(dim=1)).mean()


def train(model: nn.Module, pick: Callable[[Tensor], Data], samples: int, epochs: int, rate: float = 3e-3) -> float:
    """Seconds that the training takes."""
    start, batch = time.perf_counter(), 20
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    total = epochs * math.ceil(samples / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total, pct_start=0.1, cycle_momentum=False)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for some in torch.randperm(samples, generator=shuffle).split(batch):
            optimizer.zero_grad()
            error(model, pick(some)).backward()
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start


def numbers(model: nn.Module) -> int:
    """Real numbers that are learned."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())


def rows(samples: int, tests: int, epochs: int) -> list[list[str]]:
    """A line a network: the FNO where it is installed, an ITNet on the same grid, an ITNet on random points."""
    draw = torch.Generator().manual_seed(0)
    before = initial(samples + tests, draw)
    after = solved(before)
    fine = (before[:samples], after[:samples])
    known, grid = regular(*fine), regular(before[samples:], after[samples:])
    points = irregular(before[samples:], after[samples:], draw)

    def random_points(some: Tensor) -> Data:
        return irregular(fine[0][some], fine[1][some], draw)

    contestants: list[tuple[str, Callable[[], nn.Module], Callable[[Tensor], Data]]] = [
        ("ITNet", Operator, known.__getitem__),
        ("ITNet, trained on random points", Operator, random_points),
    ]
    if importlib.util.find_spec("neuralop") is not None:
        contestants.insert(0, ("FNO, interpolated", Fourier, known.__getitem__))
    lines = []
    for name, make, pick in contestants:
        torch.manual_seed(0)
        model = make()
        seconds = train(model, pick, samples, epochs)
        with torch.no_grad():
            errors = [f"{100 * error(model, data):.2f}" for data in (grid, points)]
        lines.append([name, str(numbers(model)), f"{seconds:.0f}", *errors])
        print("  ".join(lines[-1]), file=sys.stderr, flush=True)
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="few samples and epochs: shows that it runs")
    options = parser.parse_args(argv)
    samples, tests, epochs = (20, 10, 1) if options.quick else (options.samples, 100, options.epochs)
    found = rows(samples, tests, epochs)
    print(f"Burgers' equation, ν = {VISCOSITY}, {samples} samples, {epochs} epochs, {COARSE} points; relative L2 error")
    print(f"({machine()}, {torch.get_num_threads()} threads):\n")
    print(table(HEADER, found))
    if len(found) < 3:
        print("\nneuraloperator is not installed: no FNO.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
