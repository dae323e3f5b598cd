"""Code blocks of Markdown pages, for the tests that run them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "blocks"]

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^```(?P<language>\w*)(?: (?P<title>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: ``language``, ``title`` (the rest of the fence line) and ``text``."""

    language: str
    title: str
    text: str
    line: int


def blocks(page: str, language: str) -> list[Block]:
    """Blocks of ``language`` in ``page``, a path from the repository root."""
    content = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(content):
        if match["language"] == language:
            line = content[: match.start()].count("\n") + 2
            found.append(Block(language, match["title"] or "", match["text"], line))
    return found
