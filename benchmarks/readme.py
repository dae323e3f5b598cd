"""Put what programs really print into README.md, each below its marker.

python -m benchmarks.readme        the output of ``itnet demo``; ``make bench ARGS=--write`` does the tables
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"

__all__ = ["put", "put_demo"]


def put(marker: str, text: str) -> None:
    """Replace the paragraphs or the fenced block between ``<!-- marker -->`` and the next ``<!-- end -->``."""
    content = README.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(marker)}[^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)
    changed, count = pattern.subn(lambda found: f"{found[1]}{text.strip()}\n{found[2]}", content)
    if count != 1:
        raise ValueError(f"README.md has {count} places for {marker!r}")
    README.write_text(changed, encoding="utf-8")


def put_demo() -> int:
    """Run the demo and put its output into the README."""
    from itnet_compiler import demo

    stream = io.StringIO()
    status = demo.run(stream)
    put("output of `itnet demo`", f"```text\n{stream.getvalue()}```")
    return status


if __name__ == "__main__":
    sys.exit(put_demo())
