"""A learned kernel: the formula written out, the same with its first layer factored, the tiled integral.

python -m benchmarks.kernel [--lengths 256 …] [--doubled 1024 …] [--seconds 10]; benchmarks.kernel_peers has others

Width 64, hidden 32, 16 frequencies, 4 heads × 16, float32, one sample. The materialised formulas hold every pair of
positions; the tiled integral holds none.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import itnet  # noqa: F401  (registers the operators)
from benchmarks.measure import alternate, machine, table, typical
from itnet_compiler.ir.domain import Keys
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.mlp import Mlp
from itnet_compiler.lowering.base import find_lowering

WIDTH, HIDDEN, WAVES, HEADS, CHANNELS = 64, 32, 16, 4, 16
HEADER = ("positions", "pass", "as written ms", "factored ms", "tiled ms", "written / tiled", "factored / tiled")


def operands(length: int, device: str = "cpu") -> dict[str, object]:
    """Random operands of the kernel; all but the positions are learned."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int, fan: int = 1, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=draw) / fan**0.5).to(device).requires_grad_()

    positions = torch.linspace(0, 1, length, device=device)[None, :, None]
    return {
        "value": random(1, HEADS, length, CHANNELS),
        "query_position": positions,
        "source_position": positions,
        "query_features": random(1, length, WIDTH),
        "source_features": random(1, length, WIDTH),
        "frequencies": random(WAVES, 1, scale=10.0),
        "query_weight": random(HIDDEN, WIDTH, fan=WIDTH),
        "source_weight": random(HIDDEN, WIDTH, fan=WIDTH),
        "relative_weight": random(HIDDEN, 2 * WAVES, fan=WAVES),
        "bias": random(HIDDEN),
        "layers": [random(HEADS, HIDDEN, fan=HIDDEN), random(HEADS)],
    }


def written(o: dict) -> Tensor:
    """The formula for every pair: features of both ends and of the distance, through the network."""
    length = o["query_features"].shape[1]
    phase = (o["query_position"].unsqueeze(2) - o["source_position"].unsqueeze(1)) @ o["frequencies"].T
    query = o["query_features"].unsqueeze(2).expand(-1, -1, length, -1)
    source = o["source_features"].unsqueeze(1).expand(-1, length, -1, -1)
    pair = torch.cat([query, source, phase.cos(), phase.sin()], -1)
    weight = torch.cat([o["query_weight"], o["source_weight"], o["relative_weight"]], 1)
    hidden = F.gelu(F.linear(pair, weight, o["bias"]))
    kernel = F.linear(hidden, *o["layers"])
    return torch.einsum("bijh,bhjv->bhiv", kernel, o["value"])


def forms(length: int, device: str = "cpu") -> tuple[dict[str, Callable[[], Tensor]], dict]:
    """The three ways to compute it, by name, and the operands."""
    o = operands(length, device)
    spec = Spec(Mlp(), Keys(), "integral transform", tuple(o))
    factored, tiled = (find_lowering(name).build(spec).function for name in ("reference", "tiled"))
    return {"written": lambda: written(o), "factored": lambda: factored(**o), "tiled": lambda: tiled(**o)}, o


def gradients(form: Callable[[], Tensor], o: dict) -> None:
    """Forward and backward."""
    leaves = [leaf for leaf in (*o.values(), *o["layers"]) if isinstance(leaf, Tensor) and leaf.requires_grad]
    torch.autograd.grad(form().sum(), leaves)


def rows(length: int, seconds: float, device: str = "cpu") -> list[list[str]]:
    """Two lines of the table: without gradients, and forward and backward."""
    found, o = forms(length, device)
    sync = torch.cuda.synchronize if device == "cuda" else None

    def without(form: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            return form()

    error = (without(found["tiled"]) - without(found["written"])).norm() / without(found["written"]).norm()
    assert error < 1e-5, f"the tiled integral is off by {error:.1e}"
    lines = []
    for name, run in (("forward", without), ("forward + backward", lambda form: gradients(form, o))):
        contestants = [lambda form=form, run=run: run(form) for form in found.values()]
        one, two, three = (typical(times) for times in alternate(contestants, seconds=seconds, sync=sync))
        times = [f"{1e3 * value:.1f}" for value in (one, two, three)]
        lines.append([str(length), name, *times, f"{one / three:.1f}", f"{two / three:.1f}"])
    return lines


def peak(length: int, form: str) -> float:
    """Megabytes that a forward and a backward pass add to the peak of a process of its own."""
    code = f"from benchmarks.kernel import grown; print(grown({length}, {form!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(found.stdout)


def grown(length: int, form: str) -> float:
    """What ``peak`` measures, in this process."""
    small, o = forms(64)
    gradients(small[form], o)
    large, o = forms(length)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux only)
    before = _peak()
    gradients(large[form], o)
    return (_peak() - before) / 1024


def _peak() -> int:
    """Peak of resident memory in kilobytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def doubling(length: int, seconds: float) -> float:
    """Time of the tiled forward pass at twice the length, as a multiple; 4 is growth as N².

    A round is four calls at the one length and one at the other, which take as long. The median of the rounds.
    """
    short, long = (forms(n)[0]["tiled"] for n in (length, 2 * length))

    def timed(form: Callable[[], Tensor], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            form()
        return (time.perf_counter() - start) / calls

    with torch.no_grad():
        timed(short, 1), timed(long, 1)
        ratios, start = [], time.perf_counter()
        while len(ratios) < 3 or time.perf_counter() - start < seconds:
            before, between, after = timed(short, 2), timed(long, 1), timed(short, 2)
            ratios.append(2 * between / (before + after))
    return statistics.median(ratios)


def compile_time() -> tuple[float, float]:
    """Seconds that the first call, forward and backward, takes beyond a second one: cold, and from the disk."""
    code = "from benchmarks.kernel import first_call; print(first_call())"
    with tempfile.TemporaryDirectory() as cache:
        environment = {"ITNET_CACHE": cache}
        found = [
            subprocess.run(
                ["env", *(f"{key}={value}" for key, value in environment.items()), sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
            )
            for _ in range(2)
        ]
    cold, warm = (float(done.stdout) for done in found)
    return cold, warm


def first_call() -> float:
    """What ``compile_time`` measures, in this process."""
    found, o = forms(64)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        gradients(found["tiled"], o)
        seconds.append(time.perf_counter() - start)
    return seconds[0] - seconds[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--long", type=int, nargs="*", default=[4096, 8192])
    parser.add_argument("--doubled", type=int, nargs="*", default=[1024, 2048, 4096])
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args(argv)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    print(f"A learned kernel, width {WIDTH}, hidden {HIDDEN}, {WAVES} frequencies, {HEADS} heads × {CHANNELS}, float32")
    print(f"({machine()}, {torch.get_num_threads()} threads):\n")
    print(table(HEADER, [line for length in options.lengths for line in rows(length, options.seconds)]))
    print("\nMegabytes that one forward and backward pass adds to the peak of its process:\n")
    memory = []
    for length in options.lengths + options.long:
        many = length <= 1024
        cells = [peak(length, form) if many or form == "tiled" else None for form in ("written", "factored", "tiled")]
        memory.append([str(length), *("" if cell is None else f"{cell:.0f}" for cell in cells)])
    print(table(("positions", "as written", "factored", "tiled"), memory))
    print("\nTime of the tiled forward pass at twice the length, as a multiple (N² is 4):\n")
    growth = [[f"{n} → {2 * n}", f"{doubling(n, options.seconds):.2f}"] for n in options.doubled]
    print(table(("positions", "multiple"), growth))
    cold, warm = compile_time()
    print(f"\nFirst call, forward and backward: {cold:.1f} s more than the next where nothing is cached, ", end="")
    print(f"{warm:.2f} s from the disk.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
