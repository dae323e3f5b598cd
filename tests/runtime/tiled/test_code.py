"""``node.source()`` of a tiled node is the code that runs it."""

from __future__ import annotations

import ast
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from itnet.nn import IntegralTransform
from torch import nn

import itnet
from itnet_compiler.ir.pair.program import Program
from itnet_compiler.ir.pair.split import distribute, stages
from itnet_compiler.runtime.tiled.backends import available

needs_llvm = pytest.mark.skipif(not available("cpu"), reason="llvmlite is not installed")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def _node(model, x, method="tiled"):
    unified = itnet.lower(itnet.unify(model, x), method=method)
    (node,) = unified.integrals.values()
    return node


@needs_llvm
@pytest.mark.parametrize("method", ["library", "tiled"])
def test_on_the_cpu_it_is_the_loops_of_both_kernels(method):
    layer = IntegralTransform(16, heads=2, hidden=5, fourier=3, normalise=True)
    text = _node(layer, torch.randn(2, 7, 16), method).source()
    for words in ("# of each pair", "# forward, machine code", "# backward, machine code", "for tile in", "gelu_grad("):
        assert words in text
    assert "0..2:" in text and "0..8:" in text, "heads and their width"
    core = stages(distribute(Program.parse(layer._program[0]))).core
    loops = text.partition("# forward, machine code")[2].partition("# backward")[0]
    made = [f"%{n}" for n, value in enumerate(core.values) if value.op not in ("input", "constant", "reshape")]
    assert all(f" {name}[c] = " in loops or f" {name} = " in loops for name in made)


def test_in_float64_it_says_why_it_is_plain_torch():
    text = _node(IntegralTransform(16, heads=2).double(), torch.randn(2, 7, 16, dtype=torch.float64)).source()
    assert "# in plain torch, tile by tile: " in text
    assert "float64" in text or not available("cpu")


@needs_llvm
def test_of_attention_it_is_the_score_of_its_width():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    unified = itnet.unify(Attention(), torch.randn(2, 3, 9, 6))
    (node,) = unified.integrals.values()
    assert "scaled_dot_product_attention" in node.source() or "attention(" in node.source()
    itnet.lower(unified, method="tiled")
    text = node.source()
    assert "for c in 0..6:" in text
    assert "higher = max(peak[h]" in text


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_the_triton_source(dtype):
    program = IntegralTransform(16, heads=2)._program[0]
    text = torch.ops.itnet.integrate_code(program, True, True, True, 2, 8, dtype, "cuda")
    ast.parse(text.partition("# forward")[2].partition("\n")[2])
    assert text.count("@triton.jit\ndef backward_") == 3
    assert "'BQ': " in text


def test_elsewhere_it_says_so():
    program = IntegralTransform(16, heads=2)._program[0]
    text = torch.ops.itnet.integrate_code(program, False, False, False, 2, 8, torch.float32, "xpu")
    assert "no code is made for xpu" in text


def test_what_tiled_cannot_run_it_refuses_with_the_reason():
    unified = itnet.unify(nn.Conv1d(2, 2, 3), torch.randn(1, 2, 9))
    with pytest.raises(itnet.LoweringError, match="no pair program computes the Stationary kernel"):
        itnet.lower(unified, method="tiled")
