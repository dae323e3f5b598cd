"""Block sizes of the Triton kernels: what fits the registers, or the fastest of a few measured on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...ir.pair.program import PAIR, Program
from ...settings import tuning
from .block_code import padded
from .block_products import products

__all__ = ["Launch", "bench", "blocks", "candidates", "tuned"]

# float32 numbers of one value that a program holds in registers.
_REGISTERS = 8192


def blocks(program: Program, what: str, precision: str) -> dict[str, Any]:
    """Block sizes and warps of a kernel, so that the values of a block of pairs fit the registers of a program.

    Products outside tensor cores hold their factors in registers too.

    Args:
        program: Of one pair.
        what: ``forward``, or the side whose gradients the kernel makes: ``query``, ``source``, ``shared``.
        precision: Of products of float32, as Triton says it.
    """
    hidden = products(program).hidden
    held = (n for n, side in enumerate(program.sides) if side == PAIR and n not in hidden)
    widest = max((padded(program.values[n].size) for n in held), default=1)
    share = (1 if what == "forward" else 2) * (2 if precision == "ieee" else 1)
    pairs = max(64 if precision == "ieee" else 128, min(1024, _REGISTERS // share // widest))
    return _settings(pairs, what, precision, 8)


def _settings(pairs: int, what: str, precision: str, warps: int) -> dict[str, Any]:
    short = 1 << (pairs.bit_length() - 1) // 2
    queries, sources = (pairs // short, short) if what == "source" else (short, pairs // short)
    return {"BQ": queries, "BK": sources, "PRECISION": precision, "num_warps": warps, "num_stages": 1}


def candidates(program: Program, what: str, precision: str) -> list[dict[str, Any]]:
    """The settings of ``blocks``, then others worth a measurement: half and double the pairs, half the warps."""
    first = blocks(program, what, precision)
    pairs = first["BQ"] * first["BK"]
    others = [(pairs // 2, 4), (pairs, 4), (2 * pairs, 8)]
    return [first, *(_settings(n, what, precision, warps) for n, warps in others if n >= 64)]


def tuned(tensor: Tensor) -> bool:
    """Whether block sizes are measured: on a device, unless results have to be the same bits on every machine."""
    if not tensor.is_cuda or not tuning() or torch.are_deterministic_algorithms_enabled():
        return False
    return not torch.cuda.is_current_stream_capturing()


# How Triton measures a call: its own way unless this is another, (call, quantiles) → times.
bench: Callable[..., list[float]] | None = None


class Launch:
    """A kernel of one program with its blocks for one call.

    Args:
        kernel: The Triton function.
        program: Of one pair; what, precision: as in ``blocks``.
        count: Positions of the side that the kernel goes through.
        like: A tensor of the call.
    """

    def __init__(self, kernel: Any, program: Program, what: str, precision: str, count: int, like: Tensor) -> None:
        self.kernel, self.count, self.side = kernel, count, "BK" if what == "source" else "BQ"
        self.is_tuned = tuned(like)
        self.settings = candidates(program, what, precision) if self.is_tuned else [blocks(program, what, precision)]

    def programs(self) -> int:
        """How many programs go through the positions, at most."""
        return max(math.ceil(self.count / settings[self.side]) for settings in self.settings)

    def __call__(self, batch: int, arguments: Sequence[Any]) -> None:
        """Run the kernel for ``batch`` samples."""

        def grid(meta: dict[str, Any]) -> tuple[int, int]:
            return math.ceil(self.count / meta[self.side]), batch

        if self.is_tuned:
            rest = {"PRECISION": self.settings[0]["PRECISION"]}
            _autotuned(self.kernel, tuple(map(_frozen, self.settings)))[grid](*arguments, **rest)
        else:
            self.kernel[grid](*arguments, **self.settings[0])


def _frozen(settings: dict[str, Any]) -> tuple[int, int, int]:
    return settings["BQ"], settings["BK"], settings["num_warps"]


@lru_cache(maxsize=256)
def _autotuned(kernel: Any, settings: tuple[tuple[int, int, int], ...]) -> Any:
    """The kernel with the block sizes that Triton finds fastest for each order of size, kept in its cache on disk.

    Shared gradients are one part for each program: those of blocks that were only tried are cleared.
    """
    import triton

    configs = [triton.Config({"BQ": bq, "BK": bk}, num_warps=warps, num_stages=1) for bq, bk, warps in settings]
    cleared = [name for name in kernel.arg_names if name == "grad_shared"]
    extra = {} if bench is None else {"do_bench": bench}
    tuner = triton.autotune(configs, key=["order"], reset_to_zero=cleared or None, cache_results=True, **extra)
    return tuner(kernel)
