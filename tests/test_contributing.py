"""CONTRIBUTING: the walk-through "add a rule in one file" works as it stands."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import itnet_compiler.passes.rules
from itnet_compiler.passes import engine
from itnet_compiler.registry import scan
from tests.documents import ROOT, blocks

RULE_FOLDER, TEST_FOLDER = "itnet_compiler/passes/rules/", "tests/passes/rules/"


@pytest.fixture
def rule_module(tmp_path, monkeypatch):
    """The walk-through's rule as a file that scanning finds, for the length of one test."""
    (block,) = [block for block in blocks("CONTRIBUTING.md", "python") if block.title.startswith(RULE_FOLDER)]
    file = tmp_path / Path(block.title).name
    file.write_text(block.text, encoding="utf-8")
    monkeypatch.setattr(itnet_compiler.passes.rules, "__path__", [*itnet_compiler.passes.rules.__path__, str(tmp_path)])
    _forget()
    yield f"itnet_compiler.passes.rules.{file.stem}"
    monkeypatch.undo()
    sys.modules.pop(f"itnet_compiler.passes.rules.{file.stem}", None)
    _forget()


def _forget() -> None:
    importlib.invalidate_caches()
    scan.cache_clear()
    engine.rules.cache_clear()


def _run(text: str, line: int) -> dict:
    names: dict = {"__name__": "contributing"}
    exec(compile("\n" * (line - 1) + text, "CONTRIBUTING.md", "exec"), names)
    return names


def test_there_is_a_gap_before():
    (block,) = [block for block in blocks("CONTRIBUTING.md", "python") if not block.title]
    _run(block.text, block.line)


def test_the_rule_is_found_and_its_test_passes(rule_module):
    (block,) = [block for block in blocks("CONTRIBUTING.md", "python") if block.title.startswith(TEST_FOLDER)]
    tests = [value for name, value in _run(block.text, block.line).items() if name.startswith("test_")]
    assert len(tests) == 2
    assert "moving_average" in {rule.name for rule in engine.rules()}
    assert rule_module in sys.modules
    for test in tests:
        test()


def test_a_wrong_rule_is_rolled_back(rule_module, tmp_path):
    """What the page claims of ``step + 1``."""
    (file,) = tmp_path.glob("*.py")
    right = file.read_text(encoding="utf-8")
    file.write_text(right.replace("Window((size,), (step,)", "Window((size,), (step + 1,)"), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != right
    (test,) = [block for block in blocks("CONTRIBUTING.md", "python") if block.title.startswith(TEST_FOLDER)]
    names = _run(test.text, test.line)
    unified = names["itnet"].unify(names["Smooth"](), names["torch"].randn(2, 3, 32))
    assert not unified.integrals
    assert "differs from the region" in str(unified.report())


def test_the_files_it_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in ("passes/engine.py", "capture/leaves.py", "inspect/"):
        assert path in text
        assert (ROOT / "itnet_compiler" / path).exists()
