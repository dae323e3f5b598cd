"""Environment variables (no other module reads them) and the debug ladder.

``ITNET_DEBUG=1..4``: 1 summary, 2 stages with times, 3 near misses, 4 generated code.
``ITNET_DUMP=dir``: every stage writes a numbered, diffable text file there.
``ITNET_CACHE=dir``: where compiled code is kept, instead of the user's cache directory.
``ITNET_TUNE=0``: block sizes of kernels on GPUs are estimated, not measured.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

logger = logging.getLogger("itnet")

SUMMARY, STAGES, NEAR_MISSES, CODE = 1, 2, 3, 4


def debug_level() -> int:
    """Current rung of the debug ladder, 0 (quiet) to 4."""
    text = os.environ.get("ITNET_DEBUG", "0").strip() or "0"
    return int(text) if text.isdigit() else 0


def debug(level: int, message: str, *args: object) -> None:
    """Log ``message`` when the debug ladder has reached ``level``."""
    if debug_level() >= level:
        if not logger.handlers and not logging.getLogger().handlers:
            logger.addHandler(logging.StreamHandler())
            logger.setLevel(logging.DEBUG)
        logger.info(message, *args)


_dumped = 0


def dump(stage: str, text: str) -> None:
    """Write ``text`` to ``$ITNET_DUMP/NNN-stage.txt``; nothing happens where the variable is not set."""
    directory = os.environ.get("ITNET_DUMP")
    if not directory:
        return
    global _dumped
    _dumped += 1
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{_dumped:03d}-{stage}.txt").write_text(text + "\n", encoding="utf-8")


def tuning() -> bool:
    """Whether kernels may be measured to choose among them."""
    return os.environ.get("ITNET_TUNE", "1").strip() != "0"


def cache_directory() -> Path:
    """Where compiled code is kept between runs: ``$ITNET_CACHE``, or ``itnet`` in the user's cache directory."""
    if chosen := os.environ.get("ITNET_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "itnet"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "itnet"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "itnet"
