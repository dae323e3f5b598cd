"""What the machine code of a row loop is written from: a program, and where its values come from and go."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.pair.program import Program

__all__ = ["Steps"]


@dataclass(frozen=True)
class Steps:
    """A program, and where its inputs come from and its outputs go.

    The table has an entry for each of ``streams``, ``shared``, ``written``, then three for each carried value: what it
    is before the first step, what it is after the last one, and the kept states (address 0: none are kept).

    Attributes:
        program: One step.
        carried: Input number and output place of each carried value; input −1 where the program does not read it.
        widths: Of the carried values.
        streams: Input numbers that are read at every step.
        shared: Input numbers of vectors, and numbers of matrices, that all rows share.
        written: Output places that are written at every step.
        rows: Rows at a time.
    """

    program: Program
    carried: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]
    streams: tuple[int, ...]
    shared: tuple[int, ...]
    written: tuple[int, ...]
    rows: int
