"""Row loops in Triton: values by its interpreter, registers by a compilation ahead of time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from itnet_compiler.ir.pair.builder import Builder
from itnet_compiler.ir.pair.program import PAIR, SHARED, Program
from itnet_compiler.ir.row_reverse import reverse
from itnet_compiler.ir.row_step import row_step
from itnet_compiler.lowering.cells import cell_program
from itnet_compiler.runtime.tiled.backends import available
from tests.documents import ROOT
from tests.runtime.rows.steps import STEPS, example, loop

needs_triton = pytest.mark.skipif(not available("cuda"), reason="triton is not installed")

# In a process of its own: what a kernel is, is decided when triton is imported.
INTERPRETED = """
import torch
from itnet_compiler.ir.row_step import row_step
from itnet_compiler.runtime.rows import block_code, drive, plain, problem
from itnet_compiler.runtime.rows.gpu import Gpu, fits
from itnet_compiler.runtime.rows.plain import Plain
from tests.runtime.rows.steps import example, loop

def check(name, batch, length, axis=0):
    given = example(name, batch, length, axis)
    kernel = loop(name, given, axis)
    program = row_step(kernel).program
    assert fits(program, len(kernel.body.carried))
    groups = (tuple(group) for group in given.values())
    made = problem.Problem(program, *groups, kernel.axes, kernel.stacked, length)
    results = [drive.forward(runner, made) for runner in (Gpu, Plain)]
    compare(*results)
    outputs, lasts, kept = results[1]
    draw = lambda one: torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
    pull = list(map(draw, outputs)), list(map(draw, lasts))
    found, wanted = (drive.backward(runner, made, kept, *pull) for runner in (Gpu, Plain))
    assert found.keys() == wanted.keys()
    compare([found], [wanted])

def compare(found, wanted):
    for one, other in zip(*map(torch.utils._pytree.tree_leaves, (found, wanted)), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-6, ((one - other).norm(), other.norm())

"""
FEW = """
plain.CHUNK = problem.CHUNK = drive.CHUNK = block_code.CHUNK = 3
check("sine", 3, 4)
check("normalised", 2, 4, 1)
check("joined", 17, 2)
"""
MORE = """
for name in ("sine", "normalised", "swapped", "joined"):
    for sizes in ((1, 1), (17, 70, 1), (33, 3)):
        check(name, *sizes)
block_code.COLUMNS, block_code.DEPTH = 16, 16
check("normalised", 2, 3)
check("joined", 2, 3)
"""


@needs_triton
@pytest.mark.parametrize(
    "checks", [pytest.param(FEW, id="few"), pytest.param(MORE, id="more", marks=pytest.mark.exhaustive)]
)
def test_interpreted_kernels_are_the_plain_steps(checks):
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED + checks]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def sine() -> Program:
    """h ← sin(0.9 h + x), 128 wide."""
    b = Builder()
    h, x = (b.input(name, PAIR, (128,)) for name in ("h0", "x0"))
    after = b.elementwise("sin", b.add(b.mul(b.constant(0.9), h), x))
    return b.program([after, after])


def normalised() -> Program:
    """A gate and a candidate, normalised together, 128 wide."""
    b = Builder()
    h, x = b.input("h0", PAIR, (128,)), b.input("x0", PAIR, (256,))
    both = b.add(x, b.linear(h, b.input("w0", SHARED, (256, 128))))
    centred = b.sub(both, b.mul(b.sum(both, [0]), b.constant(1 / 256)))
    scale = b.elementwise(
        "rsqrt", b.add(b.mul(b.sum(b.mul(centred, centred), [0]), b.constant(1 / 256)), b.constant(1e-5))
    )
    scaled = b.mul(centred, scale)
    gate, candidate = b.slice(scaled, 0, 0, 128), b.slice(scaled, 0, 128, 256)
    after = b.mul(b.elementwise("sigmoid", gate), b.elementwise("tanh", candidate))
    return b.program([after, after])


PROGRAMS = {
    "sine": (sine, 1),
    "normalised": (normalised, 1),
    "gru": (lambda: cell_program("gru", 128, True), 1),
    "lstm": (lambda: cell_program("lstm", 128, True), 2),
}


@needs_triton
@pytest.mark.parametrize("precision", ["ieee", pytest.param("tf32x3", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.exhaustive), 90])
@pytest.mark.parametrize("name", ["normalised", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in PROGRAMS)])
def test_compiled_ahead_of_time_nothing_spills(name, capability, precision, tmp_path):
    import triton
    from triton.backends.compiler import GPUTarget

    from itnet_compiler.runtime.rows.block_code import Streams
    from itnet_compiler.runtime.rows.gpu import kernel_of, launch

    made, states = PROGRAMS[name]
    program = Program.parse(str(made()))
    plan = reverse(program, states)
    steps = (tuple((f"h{place}", place) for place in range(states)), tuple(range(states, len(program.outputs))))
    passes = {
        "forward": (program, *steps),
        "backward": (plan.program, plan.carried, tuple(range(states, len(plan.program.outputs)))),
    }
    for what, (part, carried, written) in passes.items():
        names = {item.name: item.number for item in part.inputs}
        inside, forward = {one for one, _ in carried}, what == "forward"
        streams = Streams(
            part,
            tuple((names.get(one, -1), place) for one, place in carried),
            (128,) * states,
            tuple(number for one, number in names.items() if one[0] != "w" and one not in inside),
            tuple(number for one, number in names.items() if one[0] == "w"),
            written,
            keep=forward,
            backwards=not forward,
        )
        kernel = kernel_of(streams)[0].steps
        settings = launch(part)
        constants = {"ROWS": settings["ROWS"], "PRECISION": precision}
        signature = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(constants, "constexpr")
        signature |= {one: "i32" for one in signature if one in ("rows", "length") or one.endswith(("_step", "_row"))}
        source = triton.compiler.ASTSource(kernel, signature, constexprs=constants)
        options = {"num_warps": settings["num_warps"], "num_stages": 1, "enable_fp_fusion": True}
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        (tmp_path / "kernel.cubin").write_bytes(built.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [tool, "--dump-resource-usage", "kernel.cubin"]
        report = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        used = {kind: int(count) for kind, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
        sys.stdout.write(
            f"{name} {what} sm_{capability} {precision}: {used['REG']} registers, {used['STACK']} bytes of stack, "
            f"{built.metadata.shared} bytes of shared memory\n"
        )
        assert used["REG"] > 0
        # Three products of TF32 numbers take more registers than sm_80 has.
        room = 96 if (capability, precision) == (80, "tf32x3") else 0
        assert used["STACK"] + used["LOCAL"] <= room, "registers spill"
        assert built.metadata.shared <= 48 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize("name", STEPS)
def test_on_a_device(name):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    results = []
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.float64)):
        given = {role: [one.to(device, dtype) for one in group] for role, group in example(name, 37, 130, 1).items()}
        leaves = [one.requires_grad_() for group in given.values() for one in group]
        kernel = loop(name, given, 1)
        made = torch.ops.itnet.row_loop(
            *given.values(), str(row_step(kernel).program), kernel.axes, kernel.stacked, 130
        )
        outputs = made[: len(kernel.stacked)]
        sum(one.square().mean() for one in outputs).backward()
        results.append([*outputs, *(one.grad for one in leaves)])
    for found, exact in zip(*results, strict=True):
        if found is not None:
            assert (found.cpu().double() - exact).norm() <= 1e-4 * exact.norm()
