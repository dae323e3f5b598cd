"""Loops by Newton's method, all steps at once: iterations and time, beside the loop as written and its default.

python -m benchmarks.newton [--length 512] [--seconds 4] [--device cpu] [--only NAME …] [--tolerance X]

Batch 8, width 128, float32. Iterations are those of the forward pass and of its gradient; ``–`` is a pass that did not
come as near as asked and ran step by step. Ratios are of the loop as written, one operator after the other, to newton.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

import itnet
from benchmarks import loops
from benchmarks.measure import alternate, machine, table, typical
from itnet_compiler.lowering.newton import outcomes

HEADER = (
    "loop",
    "iterations",
    "gradient",
    "as written ms",
    "default ms",
    "newton ms",
    "ratio",
    "training ms",
    "default ms",
    "newton ms",
    "ratio",
)
NAMES = ("LSTM by hand", "GRU by hand", "LSTM, normalised", "sine")


def row(name: str, length: int, seconds: float, device: str = "cpu", tolerance: float | None = None) -> list[str]:
    """One line of the table."""
    model, x = loops.example(name, length)
    model, x = model.to(device), x.to(device)
    usual = itnet.unify(model, x)
    newton = itnet.lower(itnet.unify(model, x), method="newton", tolerance=tolerance)
    sync = torch.cuda.synchronize if device == "cuda" else None
    times: list[float] = []
    for runs in zip(*(loops.steps(run, x) for run in (model, usual, newton)), strict=True):
        times += [typical(each) for each in alternate(list(runs), seconds=seconds, sync=sync)]
    cells = [f"{1e3 * each:.2f}" for each in times]
    ratios = [f"{times[place] / times[place + 2]:.2f}" for place in (0, 3)]
    return [name, *iterations(newton), *cells[:3], ratios[0], *cells[3:], ratios[1]]


def iterations(unified: Any) -> list[str]:
    """How many the loop of a model took, forward and gradient."""
    (node,) = unified.integrals.values()
    found = outcomes(node.spec, node.examples)
    return [f"{one.iterations}" if one is not None and one.converged else "–" for one in found]


def rows(length: int, seconds: float, device: str = "cpu") -> list[list[str]]:
    """The table."""
    return [row(name, length, seconds, device) for name in NAMES]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tolerance", type=float)
    parser.add_argument("--only", nargs="*", default=list(NAMES), metavar="NAME")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    print(f"Batch {loops.BATCH}, width {loops.WIDTH}, {options.length} steps, float32 ({machine()}):\n")
    found = [row(name, options.length, options.seconds, options.device, options.tolerance) for name in options.only]
    print(table(HEADER, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
