"""docs/kernels.md: its code runs."""

from __future__ import annotations

import torch

from tests.documents import blocks


def test_code_runs(capsys):
    torch.manual_seed(0)
    names: dict = {}
    for block in blocks("docs/kernels.md", "python"):
        exec(compile("\n" * (block.line - 1) + block.text, "docs/kernels.md", "exec"), names)
    assert "# of each pair" in capsys.readouterr().out
    assert names["steepness"].grad.any()
    assert names["mix"].grad.any()
