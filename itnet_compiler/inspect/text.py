"""Plain-text helpers shared by everything that shows things: tables, counts, errors, numbers with units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["count", "counted", "error", "shorten", "table", "units"]


def units(number: float, unit: str = "") -> str:
    """``25.6 M``, ``4.1 G``, ``840``; three digits."""
    if number < 1000:
        return f"{number:.0f} {unit}".rstrip()
    step = 0
    while number >= 999.5 and step < 6:
        number, step = number / 1000, step + 1
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} {'kMGTPE'[step - 1]}{unit}"


def error(value: float | None) -> str:
    """``2e-16``, ``0``, or a dash where nothing was checked."""
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def count(number: int, noun: str) -> str:
    """``1 integral``, ``12 integrals``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def counted(kinds: Iterable[tuple[str, int]]) -> str:
    """``52 stationary, 1 dense``."""
    return ", ".join(f"{number} {kind}" for kind, number in kinds)


def shorten(text: str, width: int) -> str:
    """``text`` cut in the middle where it is wider than ``width``."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def table(rows: Iterable[Sequence[str]], *, right: Sequence[int] = (), indent: str = "", gap: int = 2) -> list[str]:
    """Rows as lines of aligned columns; columns in ``right`` are flush right, empty columns are left out."""
    cells = [tuple(row) for row in rows]
    if not cells:
        return []
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ]
        lines.append((indent + (" " * gap).join(parts)).rstrip())
    return lines
