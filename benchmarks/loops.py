"""Recurrences written as Python loops: as written, unified, and under torch.compile; forward and training steps.

python -m benchmarks.loops [--length 256] [--seconds 4] [--compile SECONDS] [--only NAME …] [--method LOWERING]

Batch 8, width 128, float32. ``limit`` is what a forward pass takes if nothing waits for anything: the products of all
steps at once, exp of as many numbers as there are elementary functions, and a copy of as many bytes as the input and
the output have. ``--method`` runs all nodes by a lowering that is not their default. torch.compile runs in a process of
its own that is given ``--compile`` seconds; 0 leaves it out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan

import itnet
from benchmarks.measure import alternate, machine, table, typical, waiting

BATCH, WIDTH = 8, 128
HEADER = ("loop", "runs as", "as written ms", "unified ms", "ratio", "training ms", "unified ms", "ratio", "limit ms")
MORE = ("unify s", "torch.compile s", "compiled ms", "written / compiled")


class Ema(nn.Module):
    """Exponential moving average with numbers of Python."""

    def forward(self, x: Tensor) -> Tensor:
        y, outs = x[:, 0], []
        for t in range(x.shape[1]):
            y = 0.9 * y + 0.1 * x[:, t]
            outs.append(y)
        return torch.stack(outs, 1)


class MinGru(nn.Module):
    """A gated average whose gates do not see the state (arXiv:2410.01201)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.candidate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h, outs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            z = torch.sigmoid(self.gate(x[:, t]))
            h = (1 - z) * h + z * self.candidate(x[:, t])
            outs.append(h)
        return torch.stack(outs, 1)


class MinGruAlone(nn.Module):
    """The loop of ``MinGru`` without its products: what they give is the input."""

    features = 2 * WIDTH

    def forward(self, x: Tensor) -> Tensor:
        gate, candidate = x.chunk(2, -1)
        h, outs = torch.zeros_like(gate[:, 0]), []
        for t in range(x.shape[1]):
            z = torch.sigmoid(gate[:, t])
            h = (1 - z) * h + z * candidate[:, t]
            outs.append(h)
        return torch.stack(outs, 1)


class Cell(nn.Module):
    """``nn.LSTMCell`` called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], WIDTH)
        outs = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            outs.append(h)
        return torch.stack(outs, 1)


class _Gated(nn.Module):
    gates = 4

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(WIDTH, self.gates * WIDTH), nn.Linear(WIDTH, self.gates * WIDTH)


class Lstm(_Gated):
    """An LSTM written out."""

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], WIDTH)
        outs = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1)


class Gru(_Gated):
    """A GRU written out."""

    gates = 3

    def forward(self, x: Tensor) -> Tensor:
        h, outs = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            (xr, xz, xn), (hr, hz, hn) = self.x(x[:, t]).chunk(3, -1), self.h(h).chunk(3, -1)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            n = torch.tanh(xn + r * hn)
            h = (1 - z) * n + z * h
            outs.append(h)
        return torch.stack(outs, 1)


class PaddedGru(_Gated):
    """A GRU over padded sequences of several lengths: what has ended keeps its state."""

    gates = 3

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("part", torch.linspace(0.3, 1.0, BATCH))

    def forward(self, x: Tensor) -> Tensor:
        h, outs, ends = x.new_zeros(x.shape[0], WIDTH), [], (self.part * x.shape[1]).long()
        for t in range(x.shape[1]):
            (xr, xz, xn), (hr, hz, hn) = self.x(x[:, t]).chunk(3, -1), self.h(h).chunk(3, -1)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            n = torch.tanh(xn + r * hn)
            h = torch.where((t < ends)[:, None], (1 - z) * n + z * h, h)
            outs.append(h)
        return torch.stack(outs, 1)


class Normalised(_Gated):
    """An LSTM whose gates are normalised: no library layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], WIDTH)
        outs = []
        for t in range(x.shape[1]):
            i, f, g, o = self.norm(self.x(x[:, t]) + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1)


class Nonlinear(nn.Module):
    """A state that goes through a sine: nothing but a loop can run it."""

    def forward(self, x: Tensor) -> Tensor:
        h, outs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.sin(0.9 * h + x[:, t])
            outs.append(h)
        return torch.stack(outs, 1)


class LinearAttention(nn.Module):
    """A state of 4 matrices of 32 by 32 to which outer products are added."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], x.shape[1], 3, 4, 32).unbind(2)
        S, outs = x.new_zeros(x.shape[0], 4, 32, 32), []
        for t in range(x.shape[1]):
            S = S + k[:, t, :, :, None] * v[:, t, :, None, :]
            outs.append((q[:, t, :, :, None] * S).sum(-2))
        return torch.stack(outs, 1).flatten(2)


class LinearAttentionAlone(nn.Module):
    """The loop of ``LinearAttention`` without its projection: queries, keys and values are the input."""

    features = 3 * WIDTH

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.view(x.shape[0], x.shape[1], 3, 4, 32).unbind(2)
        S, outs = x.new_zeros(x.shape[0], 4, 32, 32), []
        for t in range(x.shape[1]):
            S = S + k[:, t, :, :, None] * v[:, t, :, None, :]
            outs.append((q[:, t, :, :, None] * S).sum(-2))
        return torch.stack(outs, 1).flatten(2)


class Associative(nn.Module):
    """The recurrence of minGRU by ``torch``'s operator, gates as given."""

    def forward(self, x: Tensor) -> Tensor:
        def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return left[0] * right[0], right[0] * left[1] + right[1]

        found: Tensor = associative_scan(combine, (torch.sigmoid(x), x), dim=1, combine_mode="generic")[1]
        return found


LOOPS: dict[str, type[nn.Module]] = {
    "moving average": Ema,
    "minGRU": MinGru,
    "minGRU, loop alone": MinGruAlone,
    "linear attention": LinearAttention,
    "linear attention, loop alone": LinearAttentionAlone,
    "LSTMCell": Cell,
    "LSTM by hand": Lstm,
    "GRU by hand": Gru,
    "GRU by hand, padded": PaddedGru,
    "LSTM, normalised": Normalised,
    "sine": Nonlinear,
    "associative scan": Associative,
}
# Products of one row and step, (rows of it, columns, results), and elementary functions in units of the width.
ARITHMETIC: dict[str, tuple[list[tuple[int, int, int]], int]] = {
    "moving average": ([], 0),
    "minGRU": ([(1, WIDTH, WIDTH)] * 2, 1),
    "minGRU, loop alone": ([], 1),
    "linear attention, loop alone": ([(4, 32, 64)], 0),
    "linear attention": ([(1, WIDTH, 3 * WIDTH), (4, 32, 64)], 0),
    "LSTMCell": ([(1, WIDTH, 4 * WIDTH)] * 2, 5),
    "LSTM by hand": ([(1, WIDTH, 4 * WIDTH)] * 2, 5),
    "GRU by hand": ([(1, WIDTH, 3 * WIDTH)] * 2, 3),
    "GRU by hand, padded": ([(1, WIDTH, 3 * WIDTH)] * 2, 3),
    "LSTM, normalised": ([(1, WIDTH, 4 * WIDTH)] * 2, 5),
    "sine": ([], 1),
    "associative scan": ([], 1),
}


def inputs(length: int, features: int = WIDTH) -> Tensor:
    """A batch of sequences."""
    return torch.randn(BATCH, length, features, generator=torch.Generator().manual_seed(0))


def example(name: str, length: int) -> tuple[nn.Module, Tensor]:
    """A loop and a batch for it."""
    model = LOOPS[name]()
    return model, inputs(length, getattr(model, "features", WIDTH))


def steps(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """A forward pass without gradients, and a training step."""
    given = x.clone().requires_grad_()

    def forward() -> object:
        with torch.no_grad():
            return run(x)

    def train() -> object:
        out = run(given)
        return torch.autograd.backward(out, torch.ones_like(out))

    return forward, train


def row(name: str, length: int, seconds: float, patience: float, method: str = "", device: str = "cpu") -> list[str]:
    """One line of the table."""
    model, x = (part.to(device) for part in example(name, length))
    start = time.perf_counter()
    unified = itnet.unify(model, x)
    took = time.perf_counter() - start
    if method:
        itnet.lower(unified, method=method)
    cells: list[str] = []
    for written, other in zip(steps(model, x), steps(unified, x), strict=True):
        times = [typical(each) for each in alternate([written, other], seconds=seconds, sync=waiting(x))]
        cells += [*(f"{1e3 * each:.2f}" for each in times), f"{times[0] / times[1]:.2f}"]
    runs = ", ".join(sorted({f"{node.origin} ({node.plan.lowering})" for node in unified.integrals.values()}))
    line = [name, runs, *cells, _limit(name, x, seconds), f"{took:.1f}"]
    return line + (compiled(name, length, seconds, patience) if patience else ["", "", ""])


def _limit(name: str, x: Tensor, seconds: float) -> str:
    products, functions = ARITHMETIC[name]
    rows, target, numbers = x.shape[0] * x.shape[1], torch.empty_like(x), x.new_ones(functions, *x.shape)
    pairs = [(x.new_ones(rows * each, columns), x.new_ones(columns, out)) for each, columns, out in products]
    made = torch.empty_like(numbers)
    sums = [left.new_empty(left.shape[0], right.shape[1]) for left, right in pairs]

    def least() -> None:
        for (left, right), out in zip(pairs, sums, strict=True):
            torch.mm(left, right, out=out)
        torch.exp(numbers, out=made)
        target.copy_(x)

    (times,) = alternate([least], seconds=seconds / 4, sync=waiting(x))
    return f"{1e3 * typical(times):.2f}"


def compiled(name: str, length: int, seconds: float, patience: float) -> list[str]:
    """Seconds that torch.compile takes, its time without gradients, and how much faster than written that is."""
    options = ["--compiled", name, "--length", str(length), "--seconds", str(seconds)]
    options += ["--threads", str(torch.get_num_threads())]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.loops", *options],
            capture_output=True,
            text=True,
            timeout=patience,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return [f"> {patience:.0f}", "", ""]
    except subprocess.CalledProcessError as error:
        return [(error.stderr.strip().splitlines() or ["failed"])[-1][:60], "", ""]
    took, fast, ratio = json.loads(done.stdout.splitlines()[-1])
    return [f"{took:.0f}", f"{1e3 * fast:.2f}", f"{ratio:.2f}"]


def _compile_one(name: str, length: int, seconds: float) -> None:
    model, x = example(name, length)
    function = torch.compile(model, dynamic=False)
    with torch.no_grad():
        start = time.perf_counter()
        function(x)
        took = time.perf_counter() - start
        slow, fast = map(typical, alternate([lambda: model(x), lambda: function(x)], seconds=seconds))
    print(json.dumps([took, fast, slow / fast]))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", type=float, default=0.0, metavar="SECONDS", help="patience with torch.compile")
    parser.add_argument("--only", nargs="*", default=list(LOOPS), metavar="NAME")
    parser.add_argument("--method", default="", metavar="LOWERING", help="run every node so")
    parser.add_argument("--compiled", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.compiled:
        _compile_one(options.compiled, options.length, options.seconds)
        return 0
    print(f"Batch {BATCH}, width {WIDTH}, {options.length} steps, float32, {options.threads} threads ({machine()}):\n")
    timing = options.length, options.seconds, options.compile, options.method
    rows = [row(name, *timing) for name in options.only]
    print(table([*HEADER, *MORE], rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
