"""README: its code runs, its links lead somewhere, its demo output is what the demo prints."""

from __future__ import annotations

import io
import re

import pytest
import torch

from itnet_compiler import demo
from tests.documents import ROOT, blocks

PAGES = sorted(str(page.relative_to(ROOT)) for where in ("*.md", "docs/**/*.md") for page in ROOT.glob(where))
_SECONDS = re.compile(r"\d+\.\d (?:m?s\b|×)")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")


def test_code_runs(capsys):
    torch.manual_seed(0)
    names: dict = {}
    for block in blocks("README.md", "python"):
        exec(compile("\n" * (block.line - 1) + block.text, "README.md", "exec"), names)
    assert capsys.readouterr().out


@pytest.mark.slow
def test_demo_output_is_what_the_demo_prints():
    stream = io.StringIO()
    assert demo.run(stream) == 0
    (shown,) = blocks("README.md", "text")
    expected, found = (_SECONDS.sub("# s", text).splitlines() for text in (shown.text, stream.getvalue()))
    assert len(found) == len(expected), stream.getvalue()
    for line, other in zip(found, expected, strict=True):
        assert _NUMBER.sub("#", line) == _NUMBER.sub("#", other)
        for value, shown_value in zip(_numbers(line), _numbers(other), strict=True):
            # other processors round otherwise, and training carries that on; counts of digits may move a little
            assert value == pytest.approx(shown_value, rel=0.02, abs=0.05), f"{line!r} is not {other!r}"


def _numbers(line: str) -> list[float]:
    return [float(text.replace(",", "")) for text in _NUMBER.findall(line)]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_not_too_long(page):
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith(("|", "   ")):  # tables, and what programs print
            assert len(line) <= 120, f"{page}:{number} has {len(line)} characters"


def test_it_says_whose_it_is_not():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "independent implementation, not affiliated with the paper's authors" in text
