"""How long ``unify`` takes beside ``torch.export.export`` alone, and how it grows with depth.

    python -m benchmarks.capture_time [--quick] [--write]

BERT of base width at 128 tokens, with 12, 24 and 48 layers, its attention as the fused operator and written out; the
export has the same dynamic shapes. Bars: at most twice the export, verification included, and at most half of the
capture for detection and verification; the comparison with the original on the example call is counted apart.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim

import itnet
from benchmarks import readme
from benchmarks.measure import arguments, machine, table
from itnet_compiler.unified import program_of
from tests import foreign

HEADER = (
    "BERT",
    "attention",
    "export s",
    "unify s",
    "unify / export",
    "detect, verify s",
    "of the capture",
    "comparing outputs s",
)
ALLOWED_RATIO, ALLOWED_SHARE = 2.0, 0.5


def network(layers: int, attention: str, *, width: int = 768) -> tuple[nn.Module, dict[str, Any]]:
    """BERT of the given depth; a small vocabulary, which capture never looks at.

    Args:
        layers: Depth.
        attention: ``sdpa``, or ``eager`` for attention written out.
        width: Of the hidden states.
    """
    foreign.prepare("transformers")
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    widths = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 12}
    config = BertConfig(num_hidden_layers=layers, vocab_size=1000, attn_implementation=attention, **widths)
    ids = torch.randint(3, 1000, (2, 128))
    return BertModel(config).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def export_alone(model: nn.Module, kwargs: dict[str, Any]) -> float:
    """Seconds that ``torch.export.export`` takes with every size of every input dynamic."""
    shapes = {name: dict.fromkeys(range(value.dim()), Dim.AUTO) for name, value in kwargs.items()}
    return _seconds(lambda: torch.export.export(model, (), kwargs, dynamic_shapes=shapes, strict=False))


def unify_stages(model: nn.Module, kwargs: dict[str, Any]) -> tuple[float, float, float, float]:
    """Seconds of ``unify`` without comparing outputs, of detection with verification, of capture, of comparing."""
    start = time.perf_counter()
    unified = itnet.unify(model, kwargs)
    total = time.perf_counter() - start
    stages = program_of(unified).current.seconds
    return total - stages["compare"], stages["detect and verify"], stages["capture"], stages["compare"]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rows(depths: Sequence[int], *, repeats: int = 3) -> list[list[str]]:
    """One row a depth; medians of ``repeats``, export and unify alternating."""
    small, kwargs = network(1, "eager", width=96)
    export_alone(small, kwargs)  # imports and first-time work of torch.export
    itnet.unify(small, kwargs)
    found = []
    for attention, depth in itertools.product(("sdpa", "eager"), depths):
        model, kwargs = network(depth, attention)
        exports, stages = [], []
        for _ in range(repeats):
            exports.append(export_alone(model, kwargs))
            stages.append(unify_stages(model, kwargs))
        export = statistics.median(exports)
        total, verify, capture, compared = (statistics.median(column) for column in zip(*stages, strict=True))
        found.append(
            [
                f"{depth} layers",
                attention,
                f"{export:.2f}",
                f"{total:.2f}",
                f"{total / export:.2f}",
                f"{verify:.2f}",
                f"{verify / capture:.2f}",
                f"{compared:.2f}",
            ]
        )
        print(f"[{time.strftime('%H:%M:%S')}] {' '.join(found[-1])}", file=sys.stderr, flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a bar is missed."""
    options = arguments(__doc__, argv)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    warnings.simplefilter("ignore")
    found = rows((12,) if options.quick else (12, 24, 48), repeats=1 if options.quick else 3)
    text = f"Time of unify beside torch.export.export ({machine()}, 128 tokens):\n\n{table(HEADER, found)}"
    print(text)
    if options.write:
        readme.put("benchmarks/capture_time.py", text)
    return int(any(float(row[4]) > ALLOWED_RATIO or float(row[6]) > ALLOWED_SHARE for row in found))


if __name__ == "__main__":
    sys.exit(main())
