"""Elementary functions on vectors against float64, special values included."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("llvmlite")

from llvmlite import ir

from itnet_compiler.ir.pair.primitives import ELEMENTWISE
from itnet_compiler.runtime.tiled.machine import Written, compiled, lanes
from itnet_compiler.runtime.tiled.vector_math import FLOAT, FUNCTIONS, VectorMath

SPECIAL = [0.0, -0.0, 1e-30, 1e-40, 88.0, -88.0, 100.0, -100.0, 1e4, -1.1e5, 3e6, 2e8, math.inf, -math.inf, math.nan]
# Absolute error, and relative error where the result is not near 0.
ABSOLUTE = {"exp": 0.0, "log": 1e-7, "gelu_tanh_grad": 3e-6, "gelu_tanh": 1e-6, "gelu": 6e-7, "tanh": 1e-9}
RELATIVE = {"exp": 3e-7, "log": 3e-7, "tanh": 3e-7}


def _apply(name, x, width):
    module = ir.Module()
    functions = VectorMath(module, width)
    kind = ir.FunctionType(ir.VoidType(), [FLOAT.as_pointer()] * 2)
    function = ir.Function(module, kind, "run")
    b = ir.IRBuilder(function.append_basic_block())
    source, target = (b.bitcast(argument, functions.vector.as_pointer()) for argument in function.args)
    b.store(functions.call(b, name, b.load(source, align=4)), target, align=4)
    b.ret_void()
    run, _ = compiled(f"{name} {width}", 2, lambda: Written(str(module), 0))
    result = torch.empty_like(x)
    for start in range(0, len(x), width):
        run(x.data_ptr() + 4 * start, result.data_ptr() + 4 * start)
    return result


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name in ELEMENTWISE])
def test_against_float64(name):
    x = torch.cat([torch.linspace(-12, 12, 4000), torch.linspace(-1e-2, 1e-2, 401), torch.tensor(SPECIAL)])
    x = torch.cat([x.abs() if name == "log" else x, torch.zeros(-len(x) % lanes())])
    expected = ELEMENTWISE[name].torch(x.double())
    found = _apply(name, x, lanes())
    ordinary = expected.float().isfinite()
    assert torch.equal(found.isfinite(), ordinary), x[found.isfinite() != ordinary]
    assert torch.equal(found[expected.isinf()].double(), expected[expected.isinf()])
    error = (found.double() - expected).abs()[ordinary]
    allowed = ABSOLUTE.get(name, 2e-7) + RELATIVE.get(name, 2e-7) * expected.abs()[ordinary]
    allowed += 1.2e-38  # numbers below the normal ones may become 0
    assert (error <= allowed).all(), (x[ordinary][error > allowed], error.max())


def test_negative_numbers_have_no_logarithm():
    assert _apply("log", -torch.ones(lanes()), lanes()).isnan().all()
