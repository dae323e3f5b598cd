"""Unifies one network of the zoo and records what was recognised, whether it computes the same, and what it costs.

python -m benchmarks.zoo.examine timm/resnet18 record.json
"""

from __future__ import annotations

import contextlib
import copy
import json
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import itnet
from benchmarks.zoo import catalog, kinds
from tests.documents import ROOT

__all__ = ["EQUAL", "examine", "revision"]

# Relative L2 up to which nothing more is asked; beyond it, twice the original's own error in float32, and this little.
EQUAL, _TWICE, _LITTLE = 1e-5, 2.0, 1e-6
_TIMED_SECONDS, _MOST_TURNS = 1.5, 100
_ATTENTION = ("softmax", "scaled_dot_product_attention", "_scaled_dot_product")
_RULE = "attention_by_hand"
# Said of a product that is not the one after the softmax, and of a softmax whose product refuses with another reason.
_SAYS_LITTLE = ("neither factor comes from a softmax", "no sum of values weighted by this softmax is recognised")

Record = dict[str, Any]


def examine(name: str, note: Callable[[Record], None] = lambda record: None) -> Record:
    """Everything about one network, ready for JSON.

    Args:
        name: As in ``catalog.names``.
        note: Called with the record so far before each stage, whose name it holds: what remains of one that was killed.
    """
    record: Record = {"name": name, "library": catalog.library_of(name), "family": catalog.family_of(name)}
    record |= {"versions": _versions(record["library"]), "revision": revision()}

    def stage(title: str) -> None:
        record["stage"] = title
        note(record)

    try:
        stage("build")
        network = catalog.build(name)
        stage("original")
        record |= _describe(network[0])
        with torch.no_grad(), kinds.running(network[0]) as ran:
            # what it keeps of its first call must not hold the graph of that call
            network[0](*copy.deepcopy(network[1]), **copy.deepcopy(network[2]))
        record["kinds"] = sorted(ran)
        original = _Results(*network)
        again = _Results(*network)
        record["own_repeat"] = original.apart(again)
    except Exception as error:
        return record | {"status": "does not run", "error": _said(error)}
    del again
    try:
        stage("unify")
        start = time.perf_counter()
        unified = itnet.unify(network[0], network[1], example_kwargs=network[2])
        record["unify_seconds"] = round(time.perf_counter() - start, 2)
        stage("report")
        record |= _recognised(unified)
        stage("unified")
        record |= _compared(name, network, original, _Results(unified, *network[1:]), record["own_repeat"], stage)
        stage("time")
        record["time_ratio"] = _time_ratio(network, unified)
    except Exception as error:
        return record | {"status": "failed", "error": _said(error), "traceback": _end_of_traceback()}
    del record["stage"]
    return record | {"status": "unified"}


def _versions(library: str) -> dict[str, str]:
    return {"itnet": itnet.__version__} | {name: metadata.version(name) for name in dict.fromkeys(("torch", library))}


@cache
def revision() -> str:
    """The commit of the tree when first asked, with a ``+`` where files differ from it; empty outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "itnet_compiler", "benchmarks/zoo")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _describe(model: nn.Module) -> Record:
    config = getattr(model, "config", None)
    size = sum(one.numel() for one in model.parameters())
    return {
        "class": type(model).__name__,
        "parameters": size,
        "attention": getattr(config, "_attn_implementation", None),
    }


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:400]


def _end_of_traceback() -> list[str]:
    frames = traceback.extract_tb(sys.exc_info()[2])[-6:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}: {frame.line}" for frame in frames]


# ── The same function ────────────────────────────────────────────────────────────────────────────────────────────────


class _Results:
    """Outputs of a network, and the gradients of a fixed random projection of them."""

    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        outputs = model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        found = [leaf for leaf in tree_leaves(_plain(outputs)) if isinstance(leaf, Tensor)]
        self.outputs = [leaf.detach().clone() for leaf in found]
        self.gradients: list[Tensor] = []
        generator = torch.Generator().manual_seed(1)
        loss = None
        for leaf in found:
            if leaf.is_floating_point() and leaf.requires_grad and leaf.numel():
                weights = torch.randn(leaf.shape, generator=generator).to(leaf.dtype)
                term = (leaf.nan_to_num(0, 0, 0) * weights).sum() / leaf.numel() ** 0.5
                loss = term if loss is None else loss + term
        if loss is not None:
            loss.backward()
            parameters = dict(model.named_parameters())
            self.gradients = [
                torch.zeros_like(one) if one.grad is None else one.grad.detach().clone() for one in parameters.values()
            ]
        model.zero_grad(set_to_none=True)

    def apart(self, other: _Results) -> float:
        """The larger of the differences of outputs and of gradients."""
        return max(_difference(self.outputs, other.outputs), _difference(self.gradients, other.gradients))


def _plain(outputs: Any) -> Any:
    """Containers that torch does not know as such, opened."""
    if isinstance(outputs, dict):
        return {str(key): _plain(value) for key, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return [_plain(value) for value in outputs]
    return outputs


def _difference(true: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Relative L2 of all numbers together; infinite where their number or what is finite is not the same."""
    if len(true) != len(found) or any(a.shape != b.shape for a, b in zip(true, found, strict=True)):
        return float("inf")
    apart = total = 0.0
    for a, b in zip(true, found, strict=True):
        a, b = (torch.view_as_real(one) if one.is_complex() else one for one in (a, b))
        if torch.equal(a, b) and bool(a.isfinite().all()):
            total += float(a.double().square().sum())
            continue
        a, b = a.double(), b.double()
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()):
            return float("inf")
        total += float(a[finite].square().sum())
        apart += float((a[finite] - b[finite]).square().sum())
    return (apart / total) ** 0.5 if total else (float("inf") if apart else 0.0)


def _compared(
    name: str, network: Any, original: _Results, unified: _Results, repeat: float, stage: Callable[[str], None]
) -> Record:
    """Errors forwards and backwards, and whether they are within the bar.

    A network that differs from itself by ``repeat``, under one seed, is asked for no more than twice that. Beside the
    errors of one with attention written out are those of the same network with torch's fused attention.
    """
    forward = _difference(original.outputs, unified.outputs)
    backward = _difference(original.gradients, unified.gradients)
    record: Record = {"forward_error": forward, "gradient_error": backward, "equal": True}
    if max(forward, backward) <= max(EQUAL, _TWICE * repeat):
        return record
    record["equal"] = False
    stage("float64")
    try:
        exact = _Results(copy.deepcopy(network[0]).double(), *_double(network[1:]))
    except Exception as error:  # a network that fixes its type somewhere
        return record | {"float64": _said(error)}
    fused = _Results(*catalog.build(name.removesuffix(catalog.EAGER))) if name.endswith(catalog.EAGER) else original
    for kind in ("outputs", "gradients"):
        true = getattr(exact, kind)
        own, ours, library = (_difference(true, getattr(one, kind)) for one in (original, unified, fused))
        record |= {f"own_error_{kind}": own, f"error_{kind}": ours, f"fused_error_{kind}": library}
    record["equal"] = all(
        record[f"error_{kind}"] <= _TWICE * record[f"own_error_{kind}"] + _LITTLE for kind in ("outputs", "gradients")
    )
    return record


def _double(inputs: Any) -> Any:
    return tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


# ── What was recognised ──────────────────────────────────────────────────────────────────────────────────────────────


def _recognised(unified: Any) -> Record:
    report = unified.report().to_dict()
    families: dict[str, int] = report["families"]
    share = report["captured_parameters"]
    parts = len(report["parts"])
    missing = Counter((miss["operator"], miss["reason"]) for miss in report["unmatched"])
    blocks = [miss for miss in report["unmatched"] if _is_attention(miss)]
    return {
        "captured": "whole" if report["whole"] else f"{parts} parts" if parts else "python",
        "share": share,
        "reasons": sorted({reason for left in report["left"] for reason in left["reasons"]})[:6]
        + list(report["fallbacks"])[:3],
        "families": families,
        "coverage": report["coverage"],
        "unmatched": [[number, *miss] for miss, number in missing.most_common(12)],
        "unmatched_total": sum(missing.values()),
        "softmax_found": families.get("softmax", 0),
        "softmax_left": len(blocks),
        "softmax_reasons": Counter(_why(miss, report["unmatched"]) for miss in blocks).most_common(4),
        "verified": report["verified"],
        "worst_error": report["worst_error"],
    }


def _is_attention(miss: dict[str, Any]) -> bool:
    """A softmax that mixes positions, or the fused operator; of one written out in pieces, its sum."""
    operator = miss["operator"].split(".")[0]
    return operator.startswith(_ATTENTION) or (operator == "sum" and "written-out softmax" in miss["reason"])


def _why(block: dict[str, Any], misses: Sequence[dict[str, Any]]) -> str:
    """Why the rule for attention refused: at the softmax, or said at the product after it, in the same module."""
    beside = [miss["reason"] for miss in misses if miss["module_path"] == block["module_path"]]
    said = [reason for reason in (block["reason"], *beside) if reason.startswith(_RULE)]
    better = [reason for reason in said if not any(words in reason for words in _SAYS_LITTLE)]
    return next(iter([*better, *said]), block["reason"])


# ── Run time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def _time_ratio(network: Any, unified: nn.Module) -> float:
    """Median over alternating runs of unified / original."""
    model, args, kwargs = network
    ratios: list[float] = []
    begun = time.perf_counter()
    for turn in range(_MOST_TURNS):
        times = [_timed(one, args, kwargs) for one in ((model, unified) if turn % 2 else (unified, model))]
        ratios.append(times[1] / times[0] if turn % 2 else times[0] / times[1])
        if time.perf_counter() - begun > _TIMED_SECONDS and turn > 2:
            break
    return round(statistics.median(ratios[2:]), 3)


def _timed(model: nn.Module, args: Any, kwargs: Any) -> float:
    start = time.perf_counter()
    model(*args, **kwargs)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Write the record of one network to a file, and what is known so far before each stage."""
    name, target = sys.argv[1:] if argv is None else argv
    warnings.simplefilter("ignore")
    # Where memory runs out it should be this process that is ended, not the one which goes through the zoo.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(1)

    def note(record: Record) -> None:
        Path(target).write_text(json.dumps(record), encoding="utf-8")

    note(examine(name, note))
    return 0


if __name__ == "__main__":
    sys.exit(main())
