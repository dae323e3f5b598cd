"""Attention written by hand: as written, unified, by torch.compile, the library's operator; time and peak memory.

python -m benchmarks.attention [--lengths 1024 …]
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import itnet
from benchmarks.measure import alternate, machine, table, typical

HEADS, WIDTH = 8, 64
HEADER = (
    "length",
    "mask",
    "as written ms",
    "unified ms",
    "compiled ms",
    "library ms",
    *(f"written / {other}" for other in ("unified", "compiled", "library")),
)


class Written(nn.Module):
    """Softmax attention as minGPT writes it."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``q``, ``k``, ``v``: [batch, heads, length, width]."""
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        if self.causal:
            mask = torch.tril(torch.ones(q.size(-2), k.size(-2)))
            scores = scores.masked_fill(mask == 0, float("-inf"))
        return F.softmax(scores, dim=-1) @ v


def row(length: int, causal: bool, seconds: float) -> list[str]:
    """One line of the table of times, without gradients."""
    inputs = [torch.randn(1, HEADS, length, WIDTH) for _ in range(3)]
    model = Written(causal).eval()
    unified = itnet.unify(model, tuple(inputs))
    compiled = torch.compile(model, dynamic=False)
    with torch.no_grad():
        compiled(*inputs)
        contestants = [
            lambda: model(*inputs),
            lambda: unified(*inputs),
            lambda: compiled(*inputs),
            lambda: F.scaled_dot_product_attention(*inputs, is_causal=causal),
        ]
        written, *others = (typical(times) for times in alternate(contestants, seconds=seconds))
    times = [f"{1e3 * value:.2f}" for value in (written, *others)]
    mask = "causal" if causal else "none"
    return [str(length), mask, *times, *(f"{written / other:.2f}" for other in others)]


def peak(length: int, form: str) -> float:
    """Megabytes that a call adds to the peak of a process of its own."""
    code = f"from benchmarks.attention import grown; print(grown({length}, {form!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(found.stdout)


def grown(length: int, form: str) -> float:
    """What ``peak`` measures, in this process."""
    inputs = [torch.randn(1, HEADS, length, WIDTH) for _ in range(3)]
    small = [torch.randn(1, HEADS, 16, WIDTH) for _ in range(3)]
    model: nn.Module = Written(causal=True).eval()
    if form == "unified":
        model = itnet.unify(model, tuple(small))
    with torch.no_grad():
        model(*small)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux only)
        before = _peak()
        model(*inputs)
        return (_peak() - before) / 1024


def _peak() -> int:
    """Peak of resident memory in kilobytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 1024, 2048])
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args(argv)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    torch.manual_seed(0)
    rows = [row(length, causal, options.seconds) for length in options.lengths for causal in (False, True)]
    print(f"Attention of {HEADS} heads of width {WIDTH}, float32, without gradients ({machine()}):\n")
    print(table(HEADER, rows))
    print("\nMegabytes that one causal call adds to the peak of its process:\n")
    memory = [
        [str(length), *(f"{peak(length, form):.0f}" for form in ("written", "unified"))]
        for length in (2048, 4096, 8192)
    ]
    print(table(("length", "as written", "unified"), memory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
