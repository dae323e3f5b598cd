"""How loops are compiled and spread over threads.

Compiled code is kept in the user's cache directory, under a name made from the sources here: numba itself looks at the
file of a function only, not at those it calls. Threads are ours (``runtime/threads.py``); numba's own pool dies where
two threads enter it at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch
from numba import config as numba_config
from torch import Tensor

from ....settings import cache_directory
from ...threads import share

# Neither knows of all its own options.
config: Any = numba_config
njit: Any = numba.njit

__all__ = ["arrays", "jit", "part", "run"]

# Microseconds of work that a thread is woken for.
_WORTH = 30.0

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


def arrays(*tensors: Tensor) -> list[Any]:
    """All contiguous: for every other layout of any of them the code would be compiled again."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def run(kernel: Any, count: int, *arguments: Any, microseconds: float) -> None:
    """Call ``kernel(*arguments, start, stop)`` for all of ``range(count)``, cut into one stretch a thread.

    ``microseconds`` is about what one thread takes for all of it: a short scan is over before a second one is awake.
    """
    threads = max(1, min(torch.get_num_threads(), count, int(microseconds / _WORTH)))
    if threads == 1:
        kernel(*arguments, 0, count)
        return
    edges = [count * part // threads for part in range(threads + 1)]
    share(lambda part: kernel(*arguments, *edges[part : part + 2]), threads)
