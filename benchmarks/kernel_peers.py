"""A learned kernel beside other ways to have it: torch.compile of the formula, PyKeOps, neuraloperator.

python -m benchmarks.kernel_peers [--length 1024] [--seconds 20]
pip install --no-deps pykeops keopscore pybind11            # PyKeOps, and what benchmarks.burgers needs for the other

Sizes as in ``benchmarks.kernel``. PyKeOps has no error function, so that its GELU is x·σ(1.702·x). neuraloperator's
integral transform has a kernel of positions alone, for each channel of its own: it is compared with that kernel,
written as a function. What is not installed, or finds no C++ compiler, is left out with a word.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import itnet
from benchmarks.kernel import CHANNELS, HEADS, HIDDEN, WIDTH, forms, written
from benchmarks.measure import alternate, machine, table, typical

HEADER = ("way", "pass", "first call s", "ms", "tiled ms", "ratio", "relative difference")

Run = Callable[[], Tensor]


def beside(name: str, peer: Run, tiled: Run, leaves: list[Tensor], seconds: float) -> list[list[str]]:
    """Two lines: forward, and forward and backward."""

    def forward(run: Run) -> Tensor:
        with torch.no_grad():
            return run()

    def both(run: Run) -> Tensor:
        y = run()
        torch.autograd.grad(y.sum(), leaves, allow_unused=True)
        return y

    lines = []
    for what, call in (("forward", forward), ("forward + backward", both)):
        start = time.perf_counter()
        y = call(peer)
        first = time.perf_counter() - start
        expected = call(tiled)
        difference = float(((y - expected).norm() / expected.norm()).detach())
        theirs, ours = map(typical, alternate([lambda c=call: c(peer), lambda c=call: c(tiled)], seconds=seconds))
        cells = (
            f"{first:.1f}",
            f"{1e3 * theirs:.1f}",
            f"{1e3 * ours:.1f}",
            f"{theirs / ours:.1f}",
            f"{difference:.0e}",
        )
        lines.append([name, what, *cells])
        print("  ".join(lines[-1]), file=sys.stderr, flush=True)
    return lines


def compiled(length: int, seconds: float) -> list[list[str]]:
    """torch.compile of the formula for every pair."""
    found, o = forms(length)
    peer = torch.compile(written, dynamic=False)
    leaves = [t for t in (*o.values(), *o["layers"]) if isinstance(t, Tensor) and t.requires_grad]
    return beside("torch.compile", lambda: peer(o), found["tiled"], leaves, seconds)


def keops(length: int, seconds: float) -> list[list[str]]:
    """The formula in KeOps' language: what is of one side is computed before, as the tiled integral does."""
    from pykeops.torch import Pm, Vi, Vj

    found, o = forms(length)
    leaves = [t for t in (*o.values(), *o["layers"]) if isinstance(t, Tensor) and t.requires_grad]

    def run() -> Tensor:
        query = (o["query_features"] @ o["query_weight"].T + o["bias"])[0].contiguous()
        source = (o["source_features"] @ o["source_weight"].T)[0].contiguous()
        p = o["query_position"][0].contiguous()
        phase = Pm(o["frequencies"].flatten()) * (Vi(p) - Vj(p))
        waves = phase.cos().concat(phase.sin())
        z = Pm(o["relative_weight"].flatten()).matvecmult(waves) + Vi(query) + Vj(source)
        hidden = z / (1 + (-1.702 * z).exp())
        kernel = Pm(o["layers"][0].flatten()).matvecmult(hidden) + Pm(o["layers"][1])
        ones = Pm(torch.ones(CHANNELS))
        value = o["value"][0].transpose(0, 1).reshape(length, HEADS * CHANNELS).contiguous()
        y = (kernel.tensorprod(ones) * Vj(value)).sum(dim=1)
        return y.view(1, length, HEADS, CHANNELS).transpose(1, 2)

    return beside("PyKeOps", run, found["tiled"], leaves, seconds)


@itnet.kernel
def of_positions(pos_q: Tensor, pos_k: Tensor, feat_q: Tensor, feat_k: Tensor, *, params: dict[str, Tensor]) -> Tensor:
    """A network of both positions, with a number for each channel."""
    hidden = F.gelu(params["first"] @ torch.cat([pos_k, pos_q]) + params["first_bias"])
    return params["second"] @ hidden + params["second_bias"]


def graph(length: int, seconds: float) -> list[list[str]]:
    """neuraloperator's integral transform over all pairs."""
    from neuralop.layers.integral_transform import IntegralTransform

    torch.manual_seed(0)
    peer = IntegralTransform(channel_mlp_layers=[4, HIDDEN, WIDTH], transform_type="linear", use_torch_scatter=False)
    (first, second), points = peer.channel_mlp.fcs, torch.rand(length, 2)
    values = torch.randn(1, length, WIDTH, requires_grad=True)
    every = {
        "neighbors_index": torch.arange(length).repeat(length),
        "neighbors_row_splits": torch.arange(0, length * length + 1, length),
    }
    params = {
        "first": first.weight,
        "first_bias": first.bias,
        "second": second.weight,
        "second_bias": second.bias,
    }

    def tiled() -> Tensor:
        channels = values.transpose(1, 2).unsqueeze(-1)
        found = of_positions.integral(channels, positions=points.unsqueeze(0), params=params)
        return found.squeeze(-1).transpose(1, 2)

    return beside("neuraloperator", lambda: peer(points, every, f_y=values), tiled, [values, *params.values()], seconds)


WAYS: dict[str, tuple[Callable[[int, float], list[list[str]]], str]] = {
    "torch.compile": (compiled, "torch"),
    "PyKeOps": (keops, "pykeops"),
    "neuraloperator": (graph, "neuralop"),
}


def rows(length: int, seconds: float) -> tuple[list[list[str]], list[str]]:
    """Lines of the table, and words about what is left out."""
    lines, missing = [], []
    for name, (run, package) in WAYS.items():
        if importlib.util.find_spec(package) is None:
            missing.append(f"{name} is not installed.")
        elif name != "neuraloperator" and not (shutil.which("g++") or shutil.which("clang++")):
            missing.append(f"{name} needs a C++ compiler, and there is none.")
        else:
            lines += run(length, seconds)
    return lines, missing


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args(argv)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    lines, missing = rows(options.length, options.seconds)
    print(f"A learned kernel at {options.length} positions ({machine()}, {torch.get_num_threads()} threads):\n")
    print(table(HEADER, lines))
    print("\n".join(["", *missing]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
