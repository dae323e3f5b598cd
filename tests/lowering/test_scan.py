"""How recurrences run as scans."""

from __future__ import annotations

import torch

from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.matrix_lstm import MatrixLSTM
from itnet_compiler.lowering import scan
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import relative_error


def test_a_matrix_memory_is_trained_alike_with_and_without_a_compiler(monkeypatch):
    torch.manual_seed(0)
    sizes = {"query": (1, 2, 100, 4), "key": (1, 2, 100, 4), "value": (1, 2, 100, 3)}
    sizes |= {"input_gate": (1, 2, 100), "forget_gate": (1, 2, 100)}
    given = {role: torch.randn(size, dtype=torch.float64, requires_grad=True) for role, size in sizes.items()}
    function = find_lowering("scan").build(Spec(MatrixLSTM(), Past(), "mlstm", tuple(given))).function
    runs, chunks, results = [], scan.chunks, []
    monkeypatch.setattr(scan, "chunks", lambda *args, **kwargs: runs.append(1) or chunks(*args, **kwargs))
    for compiled, expected in ((True, 0), (False, 1)):
        monkeypatch.setattr(scan, "_COMPILED", compiled)
        results.append(torch.autograd.grad(function(**given)[0].square().sum(), list(given.values())))
        assert len(runs) == expected
    assert relative_error(*results) < 1e-10
    monkeypatch.setattr(scan, "_COMPILED", False)
    with torch.no_grad():
        function(**given)
    assert len(runs) == 1
