"""How loops are compiled and spread over threads.

Compiled code is kept in the user's cache directory, under a name made from the sources here: numba itself looks at the
file of a function only, not at those it calls. Threads are ordinary ones, as many as torch uses, running code that has
released the interpreter's lock; numba's own pool dies where two threads enter it at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch
from numba import config as numba_config

from ....settings import cache_directory

# Neither knows of all its own options.
config: Any = numba_config
njit: Any = numba.njit

__all__ = ["jit", "part", "run"]

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@cache
def _directory() -> str:
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    digest = hashlib.sha256(sources + numba.__version__.encode()).hexdigest()[:16]
    return str(cache_directory() / f"scan-{digest}")


def part(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled code calls; multiply-adds may be fused, nothing is reordered."""
    return njit(fastmath={"contract"}, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)


def jit(function: Callable[..., Any]) -> Any:
    """Compile ``function`` at its first call, and keep the code; arithmetic as in ``part``."""
    before = config.CACHE_DIR
    config.CACHE_DIR = _directory()
    try:
        return njit(fastmath={"contract"}, cache=True, **_OPTIONS)(function)
    finally:
        config.CACHE_DIR = before


def run(kernel: Any, count: int, *arguments: Any) -> None:
    """Call ``kernel(*arguments, start, stop)`` for all of ``range(count)``, cut into one stretch a thread."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        kernel(*arguments, 0, count)
        return
    edges = [count * part // threads for part in range(threads + 1)]
    # The calling thread takes the first stretch itself.
    waiting = [_pool(os.getpid()).submit(kernel, *arguments, *edges[part : part + 2]) for part in range(1, threads)]
    kernel(*arguments, *edges[:2])
    for future in waiting:
        future.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="itnet-scan")
