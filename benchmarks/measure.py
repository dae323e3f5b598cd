"""What all benchmarks share: alternating timing, Markdown tables, a line about the machine."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence

import torch

__all__ = ["alternate", "arguments", "machine", "table", "typical", "waiting"]

# Seconds that each contestant runs for in a round, at least.
_SHORTEST = 5e-3


def alternate(
    contestants: Sequence[Callable[[], object]], *, seconds: float, sync: Callable[[], None] | None = None
) -> list[list[float]]:
    """Times of each contestant in seconds a call, one number a round.

    A round is short, gives every contestant the same number of calls, and reverses the order of the one before it, so
    that whatever else the machine is doing hits all of them alike.

    Args:
        contestants: Functions without arguments.
        seconds: About how long all rounds together take; there are at least nine.
        sync: Called before the clock is read (``torch.cuda.synchronize``).
    """
    sync = sync or (lambda: None)
    once = []
    for run in contestants:
        for _ in range(5):  # warm up; the last one tells how many calls fit
            sync()
            start = time.perf_counter()
            run()
            sync()
        once.append(time.perf_counter() - start)
    calls = max(1, int(_SHORTEST / max(min(once), 1e-6)))
    rounds = max(9, int(seconds / (sum(once) * calls)))
    times: list[list[float]] = [[] for _ in contestants]
    for turn in range(rounds):
        order = range(len(contestants)) if turn % 2 == 0 else reversed(range(len(contestants)))
        for index in order:
            run = contestants[index]
            start = time.perf_counter()
            for _ in range(calls):
                run()
            sync()
            times[index].append((time.perf_counter() - start) / calls)
    return times


def waiting(tensor: torch.Tensor) -> Callable[[], None] | None:
    """What waits for work on the device of ``tensor``; None where calls return when they are done."""
    return torch.cuda.synchronize if tensor.is_cuda else None


def typical(times: Sequence[float]) -> float:
    """The lower quartile: what a call takes while the machine does little else."""
    return sorted(times)[len(times) // 4]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def machine() -> str:
    """One line: what the numbers were taken on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    software = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{software}, {platform.system()} {platform.machine()}, {device}"


def arguments(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """``--quick``, ``--write``, and ``--only NAME …`` where the benchmark has rows with names."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases; the numbers are rougher")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--only", metavar="NAME", nargs="*", default=[], help="these rows only")
    return parser.parse_args(argv)
