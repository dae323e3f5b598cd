"""The Triton kernels: their values by Triton's interpreter, their registers by a compilation ahead of time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from itnet.nn import IntegralTransform

from itnet_compiler.ir.domain import Band, Keys
from itnet_compiler.ir.mlp import Mlp
from itnet_compiler.ir.pair.builder import Builder
from itnet_compiler.ir.pair.program import QUERY, SHARED, SOURCE, Program
from itnet_compiler.ir.pair.split import distribute, stages
from itnet_compiler.lowering.base import find_lowering
from itnet_compiler.runtime.tiled.backends import available
from tests.documents import ROOT

needs_triton = pytest.mark.skipif(not available("cuda"), reason="triton is not installed")

# In a process of its own: what a kernel is, is decided when triton is imported.
INTERPRETED = """
import torch
from itnet_compiler.ir.pair.split import distribute, stages
from itnet_compiler.ir.pair.adjoint import adjoint
from itnet_compiler.runtime.tiled import block_sizes, gpu, plain
from itnet_compiler.runtime.tiled.operators import _problem
from tests.ir.pair.functions import FUNCTIONS
from tests.ir.pair.pairs import tensors, traced
from tests.runtime.tiled.test_gpu import network, product, relaxed

def check(core, lengths, normalise=False, before=-1, after=-1, masked=False, dtype=torch.float32, width=5):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: 0.7 * torch.randn(shape, generator=generator)
    batch, (queries, sources) = 2, lengths
    shape = core.values[core.outputs[0]].shape
    heads = shape[0] if shape else 3
    lead = {0: (), 1: (batch, queries), 2: (batch, sources)}
    groups = [[draw(*lead[side], *i.shape) for i in core.inputs if i.side == side] for side in (1, 2, 0)]
    value = draw(batch, heads, sources, width).to(dtype)
    mask = torch.rand((batch, queries, sources), generator=generator) < 0.7 if masked else None
    problem = _problem(value, *groups, mask, queries, str(core), normalise, before, after)
    assert gpu.refusals(problem) == (), gpu.refusals(problem)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    output, level = gpu.forward(problem)
    expected, expected_level = plain.forward(problem)
    assert (output - expected).norm() <= tolerance * expected.norm() + 1e-6
    if normalise:
        torch.testing.assert_close(level, expected_level, rtol=1e-3, atol=tolerance)
    pull = draw(*expected.shape)
    reverse = adjoint(core, gpu.wanted_of(problem))
    found, wanted = (m.backward(problem, reverse, expected, expected_level, pull) for m in (gpu, plain))
    scale = max(g.norm() for g in wanted.inputs.values())
    assert (found.value - wanted.value).norm() <= 3 * tolerance * wanted.value.norm()
    for name, theirs in wanted.inputs.items():
        error = (found.inputs[name] - theirs).norm()
        assert error <= 3 * tolerance * max(theirs.norm(), 0.1 * scale), (name, error, theirs.norm())

"""

# The blocks that a measurement calls fastest are taken, and nothing is left of those that were only tried.
TUNED = """
tried = []
def bench(call, quantiles):
    call()
    tried.append(call)
    return [len(tried) % 4 != 0] * 3
block_sizes.bench, block_sizes.tuned = bench, lambda tensor: True
check(network(hidden=5, waves=3, heads=1), (3, 5), normalise=True)
assert len(tried) == 4 * 4, len(tried)
"""
FEW = """
check(network(), (7, 20))
check(relaxed(heads=2, width=5), (9, 20), normalise=True, masked=True)
"""
MORE = """
check(network(heads=20), (1, 1), before=0, after=0, width=1)
check(network(hidden=5, waves=3, heads=2, depth=2), (17, 9), normalise=True, before=3, after=0)
check(network(), (20, 33), normalise=True, masked=True)
check(network(), (9, 20), dtype=torch.float16)  # the interpreter gets bfloat16 products wrong
check(relaxed(), (20, 33), normalise=True, masked=True)
check(relaxed(heads=1, width=70), (17, 9), normalise=True, before=3, after=0, dtype=torch.float16)
check(product(5), (7, 20), normalise=True)
check(product(64), (40, 70), normalise=True, after=0)
for name in ("concatenation", "fourier", "one_number", "distances"):
    function, params = FUNCTIONS[name]
    program = traced(function, tensors(), params)[0].program
    check(stages(distribute(program)).core, (6, 19), normalise=name == "fourier")
"""


def network(hidden: int = 32, waves: int = 16, heads: int = 4, depth: int = 1) -> Program:
    """The core of an MLP kernel: what is left for each pair."""
    b = Builder()
    between = b.sub(b.input("pos_q", QUERY, (1,)), b.input("pos_k", SOURCE, (1,)))
    phase = b.linear(between, b.input("omega", SHARED, (waves, 1)))
    both = b.cat([b.elementwise("cos", phase), b.elementwise("sin", phase)], 0)
    total = b.linear(both, b.input("relative", SHARED, (hidden, 2 * waves)))
    total = b.add(total, b.add(b.input("query", QUERY, (hidden,)), b.input("source", SOURCE, (hidden,))))
    for layer in range(depth - 1):
        total = b.linear(b.elementwise("gelu", total), b.input(f"hidden{layer}", SHARED, (hidden, hidden)))
    total = b.linear(b.elementwise("gelu", total), b.input("out", SHARED, (heads, hidden)))
    return stages(distribute(b.program([b.add(total, b.input("bias", SHARED, (heads,)))]))).core


def relaxed(heads: int = 4, width: int = 6) -> Program:
    """Of attention with an MLP added to its score."""
    layer = IntegralTransform(heads * width, heads, "softmax+mlp", hidden=8, fourier=3)
    return stages(distribute(Program.parse(layer._program[0]))).core


def attention() -> Program:
    """Of attention with an MLP added to its score, as wide as ``network``."""
    return stages(distribute(Program.parse(IntegralTransform(64, 4, "softmax+mlp")._program[0]))).core


def product(width: int) -> Program:
    """Of attention."""
    b = Builder()
    return b.program([b.sum(b.mul(*(b.input(n, s, (width,)) for n, s in (("q", QUERY), ("k", SOURCE)))), [0])])


@needs_triton
@pytest.mark.parametrize(
    "checks", [pytest.param(FEW + TUNED, id="few"), pytest.param(MORE, id="more", marks=pytest.mark.exhaustive)]
)
def test_interpreted_kernels_are_the_plain_tiles(checks):
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED + checks]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def _built(text, name, settings, capability, half, tmp_path):
    """(registers, bytes of stack, bytes of shared memory, tensor-core instructions) of a kernel."""
    import triton
    from triton.backends.compiler import GPUTarget

    from itnet_compiler.runtime.tiled import gpu

    kernel = getattr(gpu.kernels(text), name)
    constants = {key: settings[key] for key in ("BQ", "BK", "PRECISION")}
    numbers = {"queries", "sources", "before", "after", "mask_batch", "mask_row", "order"}
    kinds = dict.fromkeys(constants, "constexpr") | dict.fromkeys(numbers, "i32")
    kinds |= {"mask": "*u8", "value": "*bf16" if half else "*fp32"}
    signature = {argument: kinds.get(argument, "*fp32") for argument in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, signature, constexprs=constants)
    options = {"num_warps": settings["num_warps"], "num_stages": settings["num_stages"], "enable_fp_fusion": True}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    (tmp_path / "kernel.cubin").write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "--dump-resource-usage", "kernel.cubin"]
    report = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    used = {what: int(count) for what, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    products = len(re.findall(r"\bmma\.sync|\bwgmma\.mma", built.asm["ptx"]))
    return used["REG"], used["STACK"] + used["LOCAL"], built.metadata.shared, products


def _variants():
    for capability in (80, 90):
        for kind in ("ieee", "tf32x3", "bfloat16"):
            for what in ("forward", "query", "source", "shared"):
                first = (capability, kind) == (90, "ieee") and what in ("forward", "source")
                marks = () if first else (pytest.mark.exhaustive,)
                yield pytest.param(capability, kind, what, network, marks=marks)
    for kind in ("ieee", "bfloat16"):
        for what in ("forward", "query", "source", "shared"):
            yield pytest.param(90, kind, what, attention, marks=pytest.mark.exhaustive)


@needs_triton
@pytest.mark.parametrize(("capability", "kind", "what", "program_of"), list(_variants()))
def test_compiled_ahead_of_time_it_fits(capability, kind, what, program_of, tmp_path):
    """Hidden 32, 16 frequencies, 4 heads × 16. Large angles take 32 bytes of stack; the rest of it are spills."""
    from itnet_compiler.runtime.tiled import gpu
    from itnet_compiler.runtime.tiled.block_kernels import Kind, backward_text, forward_text
    from itnet_compiler.runtime.tiled.block_sizes import blocks

    half, precision = kind == "bfloat16", "ieee" if kind == "ieee" else "tf32x3"
    core, written = program_of(), Kind(4, 16, program_of is attention, False, half)
    if what == "forward":
        text, name, program = forward_text(core, written), "forward", core
    else:
        plans = gpu.reverse_programs(core, frozenset(item.name for item in core.inputs))
        plan = dict(zip(("query", "source", "shared"), plans, strict=True))[what]
        side = SOURCE if what == "source" else QUERY
        text, program = backward_text(plan.reverse, written, side), plan.program
        name = "backward_source" if what == "source" else "backward_query"
    found = _built(text, name, blocks(program, what, precision), capability, half, tmp_path)
    registers, stack, shared, products = found
    sys.stdout.write(
        f"{what} sm_{capability} {kind}: {registers} registers, {stack} bytes of stack, "
        f"{shared} bytes of shared memory, {products} tensor-core instructions\n"
    )
    assert 0 < registers <= 255
    assert stack <= (192 if what == "shared" else 64)
    assert shared <= 48 * 1024
    assert (products > 0) == (kind != "ieee"), "tensor cores have no IEEE float32"


@needs_triton
def test_float32_is_ieee_float32_unless_torch_may_use_tf32():
    program, before = str(network()), torch.backends.cuda.matmul.fp32_precision
    try:
        for allowed, said in (("ieee", "ieee"), ("none", "ieee"), ("tf32", "tf32x3")):
            torch.backends.cuda.matmul.fp32_precision = allowed
            text = torch.ops.itnet.integrate_code(program, False, False, False, 4, 16, torch.float32, "cuda")
            assert text.count(f"'PRECISION': '{said}'") == 4
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@needs_triton
def test_what_a_block_cannot_hold_is_refused_with_a_reason():
    from itnet_compiler.runtime.tiled.block_code import unsupported

    b = Builder()
    heads = [b.reshape(b.input(name, side, (6,)), (2, 3)) for name, side in (("q", QUERY), ("k", SOURCE))]
    assert unsupported(stages(b.program([b.sum(b.mul(*heads), [1])])).core) == (), "a product of each head is a matrix"
    program = b.program([b.sum(b.elementwise("tanh", b.mul(*heads)), [1])])
    assert any("shape (2, 3)" in reason for reason in unsupported(stages(program).core))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("domain", [Keys(), Keys(causal=True), Band(9, 2)], ids=str)
@pytest.mark.parametrize(
    "kernel", [Mlp(), Mlp(normalise=True), Mlp(normalise=True, base=True)], ids=["plain", "normalised", "relaxed"]
)
def test_on_a_device(kernel, domain, dtype):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    roles = Mlp.samples()[0].spec.operands + (("base_query", "base_source", "gate") if kernel.base else ())
    sample = kernel._sample(domain, roles, lengths=(300, 257), width=16, hidden=32)
    results = []
    for name, kind in (("tiled", dtype), ("reference", torch.float64)):
        operands = sample.operands(dtype, torch.Generator().manual_seed(0))
        move = lambda t, kind=kind: t.cuda() if t.dtype == torch.bool else t.to("cuda", kind).requires_grad_()  # noqa: E731
        operands = torch.utils._pytree.tree_map(move, operands)
        output = find_lowering(name).build(sample.spec).function(**operands)
        output.float().square().mean().backward()
        results.append([output, *(operands[role].grad for role in ("value", "query_features", "source_features"))])
    for found, expected in zip(*results, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert (found.double() - expected).norm() <= tolerance * expected.norm()
