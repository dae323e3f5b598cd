"""Linear recurrences of transformers' models: the fallback they run without extra packages, and one node.

python -m benchmarks.recurrence [--length 1024] [--seconds 6] [--compile SECONDS]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import itnet
from benchmarks.measure import alternate, machine, table, typical

WIDTH, LAYERS, STATES = 256, 4, 16
NETWORKS = ("Mamba", "Mamba2", "Qwen3Next")
NETWORK = ("network", "step", "length", "as published ms", "unified ms", "ratio", "unify s")
SCAN = ("scan alone", "fallback ms", "node ms", "ratio", "Gexp/s", "GB/s", "torch.exp ms", "copy ms")
COMPILED = ("length", "eager ms", "torch.compile ms", "node ms", "torch.compile takes s")
MEMORY = ("scan alone", "fallback MB", "node MB", "one state MB", "a state in 64 steps MB")
FORMS = ("form", "as published ms", "scan ms", "chunked ms", "published / scan")


def network(name: str) -> nn.Module:
    """A network of ``LAYERS`` layers and width ``WIDTH`` with random weights."""
    from tests.foreign import prepare

    prepare("transformers")
    import transformers

    transformers.logging.set_verbosity_error()
    options: dict[str, dict[str, Any]] = {
        "Mamba": {"state_size": STATES},
        "Mamba2": {"state_size": 64, "num_heads": 8, "head_dim": 64, "n_groups": 1},
        "Qwen3Next": {
            "layer_types": ["linear_attention"] * LAYERS,
            **{f"linear_num_{kind}_heads": 8 for kind in ("key", "value")},
            **{f"linear_{kind}_head_dim": 64 for kind in ("key", "value")},
            **{"num_experts": 4, "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
            **{f"{kind}intermediate_size": WIDTH for kind in ("", "moe_", "shared_expert_")},
        },
    }
    common = {"vocab_size": 1000, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "use_cache": False}
    config = getattr(transformers, f"{name}Config")(**common, **options[name])
    return getattr(transformers, f"{name}Model")(config).eval()


def network_row(name: str, length: int, seconds: float, *, train: bool) -> list[str]:
    """Time of a forward pass, or of one with its backward pass."""
    model = network(name)
    tokens = torch.randint(1000, (1, length))
    start = time.perf_counter()
    unified = itnet.unify(model, (tokens,))
    took = time.perf_counter() - start

    def contestant(run: Callable[..., Any]) -> Callable[[], object]:
        def step() -> object:
            with contextlib.nullcontext() if train else torch.no_grad():
                out = run(tokens).last_hidden_state
            return out.sum().backward() if train else out

        return step

    times = [typical(each) for each in alternate([contestant(model), contestant(unified)], seconds=seconds)]
    cells = [f"{1e3 * each:.1f}" for each in times]
    return [name, "training" if train else "forward", str(length), *cells, f"{times[0] / times[1]:.1f}", f"{took:.1f}"]


def operands(length: int, channels: int = 2 * WIDTH) -> list[Tensor]:
    """u, Δ, A, B and C of one layer of Mamba."""
    u, delta = torch.randn(1, channels, length), F.softplus(torch.randn(1, channels, length) - 4)
    A = -torch.arange(1.0, STATES + 1).expand(channels, STATES).contiguous()
    return [u, delta, A, torch.randn(1, STATES, length), torch.randn(1, STATES, length)]


def _fallback() -> Callable[..., Any]:
    network("Mamba")
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    return mamba_selective_scan


def scan_row(length: int, seconds: float) -> list[str]:
    """One scan, without gradients, beside torch.exp of as many numbers as it takes, and a copy of as many bytes."""
    given, fallback = operands(length), _fallback()
    exps, moved = given[0].numel() * STATES, sum(4 * one.numel() for one in (*given, given[0]))
    few, source, target = torch.randn(1 << 14), torch.randn(1 << 22), torch.empty(1 << 22)
    with torch.no_grad():
        pair = alternate([lambda: fallback(*given), lambda: torch.ops.itnet.selective_scan(*given)], seconds=seconds)
        (exp,) = map(typical, alternate([lambda: torch.exp(few)], seconds=seconds / 4))
        (copy,) = map(typical, alternate([lambda: target.copy_(source)], seconds=seconds / 4))
    slow, fast = map(typical, pair)
    alone = exps * exp / few.numel(), moved * copy / (8 * source.numel())
    name = f"selective, {length} steps"
    cells = [f"{1e3 * slow:.1f}", f"{1e3 * fast:.2f}", f"{slow / fast:.1f}"]
    rates = [f"{exps / fast / 1e9:.2f}", f"{moved / fast / 1e9:.2f}"]
    return [name, *cells, *rates, *(f"{1e3 * each:.2f}" for each in alone)]


def compiled_row(length: int, seconds: float, patience: float) -> list[str]:
    """The fallback under torch.compile, which unrolls it, in a process that is given ``patience`` seconds."""
    try:
        found = _in_child(["--compiled", str(length), "--seconds", str(seconds)], patience)
    except subprocess.TimeoutExpired:
        return [str(length), "", "", "", f"> {patience:.0f}"]
    return [str(length), *(f"{1e3 * each:.2f}" for each in found[1:]), f"{found[0]:.0f}"]


def _compile_fallback(length: int, seconds: float) -> list[float]:
    given, fallback = operands(length), _fallback()
    function = torch.compile(fallback)
    with torch.no_grad():
        start = time.perf_counter()
        function(*given)
        took = time.perf_counter() - start
        contestants = [
            lambda: fallback(*given), lambda: function(*given), lambda: torch.ops.itnet.selective_scan(*given)
        ]  # fmt: skip
        return [took, *(typical(each) for each in alternate(contestants, seconds=seconds))]


def _in_child(options: Sequence[str], patience: float | None = None) -> list[float]:
    threads = ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.recurrence", *options, *threads],
        capture_output=True,
        text=True,
        timeout=patience,
        check=True,
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory_rows(length: int) -> list[list[str]]:
    """Peak memory that one scan adds to that of its operands and results, in processes of their own."""
    state = 4e-6 * operands(1)[0].shape[1] * STATES
    rows = []
    for what in ("forward", "training"):
        found = [_in_child(["--memory", kind, what, "--length", str(length)])[0] for kind in ("fallback", "node")]
        cells = [f"{each:.1f}" for each in (*found, state, state * length / 64)]
        rows.append([f"selective, {what}, {length} steps", *cells])
    return rows


def _memory_added(kind: str, what: str, length: int) -> list[float]:
    """MB by which the peak grows, less what is returned."""
    scan = _fallback() if kind == "fallback" else torch.ops.itnet.selective_scan

    def step(steps: int) -> float:
        given = [one.requires_grad_(what == "training") for one in operands(steps)]
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        made = scan(*given)
        made = [one for one in (made if isinstance(made, tuple) else (made,)) if isinstance(one, Tensor)]
        results = [*made]
        if what == "training":
            results += torch.autograd.grad(made[0].sum(), given)
        return _resident("VmHWM") - before - sum(one.nbytes for one in results) / 1e6

    step(8)  # compiles, and loads what is loaded once
    return [step(length)]


def _resident(what: str) -> float:
    """Resident memory of this process in MB, now or at its peak, as Linux counts it."""
    status = Path("/proc/self/status").read_text()
    return 1.024e-3 * int(next(line for line in status.splitlines() if line.startswith(what)).split()[1])


def form_rows(length: int, seconds: float, heads: int, width: int) -> list[list[str]]:
    """Mamba-2, the gated delta rule and xLSTM: the published chunked form, the sequential scan, our chunked form."""
    from itnet_compiler.ir.domain import Past
    from itnet_compiler.ir.kernel import Spec
    from itnet_compiler.ir.matrix_lstm import MatrixLSTM
    from itnet_compiler.ir.memory import GatedDelta, Memory, StateSpaceDual
    from itnet_compiler.lowering.base import find_lowering

    network("Mamba2"), network("Qwen3Next")
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule
    from transformers.models.xlstm.configuration_xlstm import xLSTMConfig
    from transformers.models.xlstm.modeling_xlstm import xLSTMBackend

    x, delta = torch.randn(1, length, heads, width), F.softplus(torch.randn(1, length, heads) - 2)
    query, key = (F.normalize(torch.randn(1, length, heads, width), dim=-1) for _ in range(2))
    dual = {"input": x, "delta": delta, "A": -torch.rand(heads), "B": query, "C": key}
    rule = {"query": query, "key": key, "value": x, "decay": -delta, "beta": torch.rand(1, length, heads)}
    gates = {"input_gate": torch.randn(1, heads, length), "forget_gate": torch.randn(1, heads, length) + 4}
    memory = {"query": query, "key": key, "value": x}
    memory = {role: one.transpose(1, 2).contiguous() for role, one in memory.items()} | gates
    backend = xLSTMBackend(xLSTMConfig())
    cases: list[tuple[str, Memory, dict[str, Tensor], Callable[[], Any]]] = [
        ("Mamba-2", StateSpaceDual(), dual, lambda: mamba2_chunk_scan(*dual.values(), 256)),
        (
            "gated delta rule",
            GatedDelta(),
            rule,
            lambda: torch_chunk_gated_delta_rule(query, key, x, g=rule["decay"], beta=rule["beta"]),
        ),
        ("mLSTM", MatrixLSTM(), memory, lambda: backend(*memory.values())),
    ]
    rows = []
    for name, kernel, given, published in cases:
        spec, contestants = Spec(kernel, Past(), name, tuple(given)), [published]
        for method in ("scan", "chunked"):
            if find_lowering(method).supports(spec).ok:
                function = find_lowering(method).build(spec).function
                contestants.append(lambda function=function, given=given: function(**given))
        for what in ("", ", training"):
            runs = [partial(_with_gradients, each, given) for each in contestants] if what else contestants
            with torch.set_grad_enabled(bool(what)):
                times = [typical(each) for each in alternate(runs, seconds=seconds)]
            cells = [*(f"{1e3 * each:.1f}" for each in times), *[""] * (3 - len(times))]
            rows.append([name + what, *cells, f"{times[0] / times[1]:.1f}"])
    return rows


def _with_gradients(run: Callable[[], Any], given: dict[str, Tensor]) -> object:
    leaves = [one.requires_grad_() for one in given.values()]
    return torch.autograd.grad(run()[0].sum(), leaves)


def main(argv: Sequence[str] | None = None) -> int:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", type=float, default=0.0, metavar="SECONDS", help="patience with torch.compile")
    parser.add_argument("--compiled", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.compiled or options.memory:
        made = _memory_added(*options.memory, options.length) if options.memory else None
        print(json.dumps(made or _compile_fallback(options.compiled, options.seconds)))
        return 0
    length, seconds = options.length, options.seconds
    print(f"{LAYERS} layers, width {WIDTH}, batch 1, float32, {torch.get_num_threads()} threads ({machine()}):\n")
    cases = [(name, length, False) for name in NETWORKS]
    cases += [(name, min(length, 128), True) for name in NETWORKS]  # the fallback's backward grows with the square
    print(table(NETWORK, [network_row(name, steps, seconds, train=train) for name, steps, train in cases]), flush=True)
    print("\nThe scan alone, beside torch.exp of as many numbers and a copy of as many bytes:\n")
    print(table(SCAN, [scan_row(length, seconds)]), flush=True)
    print("\nMemory that one scan adds to that of operands and results:\n")
    print(table(MEMORY, memory_rows(length)), flush=True)
    for heads, width, steps in ((8, 64, length), (32, 128, min(length, 256))):  # the second as in Qwen3-Next
        print(f"\nTwo forms of a state of {heads} heads, {width} by {width}, {steps} steps:\n")
        print(table(FORMS, form_rows(steps, seconds, heads, width)), flush=True)
    if options.compile:
        print("\nThe selective scan's fallback under torch.compile:\n")
        print(table(COMPILED, [compiled_row(each, seconds, options.compile) for each in (16, 64, length)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
