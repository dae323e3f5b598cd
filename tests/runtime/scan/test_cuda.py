"""The Triton kernels: their values by Triton's interpreter, their registers by a compilation ahead of time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from itnet_compiler.runtime.scan.backends import available
from tests.documents import ROOT

pytestmark = pytest.mark.skipif(not available("cuda"), reason="triton is not installed")

# In a process of its own: what a kernel is, is decided when triton is imported.
INTERPRETED = """
import torch
from torch.nn import functional as F
from itnet_compiler.runtime.scan import cuda, eager

torch.manual_seed(0)
cuda.CHUNK = 4

def random(*shape):
    return torch.randn(shape, dtype=torch.float64)

def check(name, *operands):
    for one, other in zip(getattr(cuda, name)(*operands), getattr(eager, name)(*operands), strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)

for batch, channels, time, states in ((1, 1, 1, 1), (2, 5, 10, 3), (0, 3, 4, 2), (2, 3, 0, 4)):
    step = F.softplus(random(batch, time, channels)).transpose(1, 2)
    state, line = (batch, channels, states), (batch, states, time)
    operands = random(batch, channels, time), step, -random(channels, states).exp(), random(*line), random(*line)
    check("selective_scan", *operands, None)
    check("selective_scan_backward", random(batch, channels, time), random(*state), *operands, random(*state))
for rows, time, keys, values in ((1, 1, 1, 1), (2, 10, 3, 5), (2, 0, 3, 4)):
    for beta in (None, torch.sigmoid(random(rows, time, 1))):
        for decay in (None, torch.sigmoid(random(rows, time, 1)), torch.sigmoid(random(rows, time, keys))):
            key = F.normalize(random(rows, time, keys), dim=-1)
            query, value, start = random(rows, time, keys), random(rows, time, values), random(rows, keys, values)
            operands = query, key, value, beta, decay, start
            check("matrix_scan", *operands)
            check("matrix_scan_backward", random(rows, time, values), random(rows, keys, values), *operands)
for time, width in ((1, 1), (5, 130), (0, 3)):
    for shape in ((time, width), (1, width), (time, 1), (1, 1)):
        for reverse in (False, True):
            check("linear_scan", torch.sigmoid(random(*shape)), random(time, width), random(width), reverse)
"""


def test_interpreted_kernels_are_the_plain_scans():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


# Of each kernel: how many pointers, how many integers, the states, the flag; for a state of 16 and keys of 64 numbers.
KERNELS = {
    "linear": (4, 4, 0, {"reverse": False}),
    "selective": (7, 3, 16, {}),
    "selective_backward": (15, 4, 16, {}),
    "matrix": (7, 4, 64, {"delta": True}),
    "matrix_backward": (15, 5, 64, {"delta": True}),
}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_ahead_of_time_nothing_spills(name, capability, tmp_path, record_property):
    import triton
    from triton.backends.compiler import GPUTarget

    from itnet_compiler.runtime.scan import cuda

    kernel = getattr(cuda.kernels, name)
    pointers, integers, states, constants = KERNELS[name]
    if states:
        block, padded = cuda.block_sizes(name, states, 4096)
        constants = constants | {"block": block, "padded": padded}
    else:
        constants = constants | {"block": cuda.COLUMNS}
    kinds = ["*fp32"] * pointers + ["i32"] * integers + ["constexpr"] * len(constants)
    signature = dict(zip(kernel.arg_names, kinds, strict=True))
    source = triton.compiler.ASTSource(kernel, signature, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
    (tmp_path / "kernel.cubin").write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "--dump-resource-usage", "kernel.cubin"]
    report = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    used = {what: int(count) for what, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    record_property("registers", used["REG"])
    sys.stdout.write(f"{name} sm_{capability}: {used['REG']} registers, {built.metadata.shared} bytes shared\n")
    assert used["REG"] > 0
    assert (used["STACK"], used["LOCAL"]) == (0, 0), "registers spill"
