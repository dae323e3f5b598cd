"""Promise 6: a unified model is at most 1.03 times as slow as the original, or 50 µs where that is more.

    python -m benchmarks.overhead [--quick] [--write] [--only NAME …]

Original, unified and the original once more alternate in one process; original against itself (A/A) says how far the
ratio beside it can be trusted: a ratio above the bar is ``unclear`` where A/A is off by as much.
``compile`` compares torch.compile(unified) with torch.compile(model).
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import itnet
from benchmarks import readme
from benchmarks.measure import alternate, arguments, machine, table, typical
from tests import foreign

HEADER = ("network", "run", "original ms", "A/A", "unified ms", "ratio", "extra µs", "kept")
NETWORKS = ("resnet50", "mobilenet_v3_small", "vit_b_16", "bert_6_layers", "bilstm_tagger")
ALLOWED_RATIO, ALLOWED_SECONDS = 1.03, 50e-6


def network(name: str) -> foreign.Built:
    """The network at its published size; ``bert_6_layers`` is BERT-base cut to 6 layers, 128 tokens."""
    if name != "bert_6_layers":
        return foreign.build(name, full=True)
    foreign.prepare("transformers")
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    ids = torch.randint(3, 1000, (2, 128))
    model = BertModel(BertConfig(num_hidden_layers=6, vocab_size=1000)).eval()
    return model, (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def compare(
    original: Callable[..., Any], unified: Callable[..., Any], args: Any, kwargs: Any, seconds: float
) -> tuple[list[str], bool]:
    """The last six columns of a row, and whether the promise is kept."""
    sync = torch.cuda.synchronize if torch.cuda.is_available() else None
    with torch.no_grad():
        base, mine, again = alternate(
            [lambda: original(*args, **kwargs), lambda: unified(*args, **kwargs), lambda: original(*args, **kwargs)],
            seconds=seconds,
            sync=sync,
        )
    first, second, ours = typical(base), typical(again), typical(mine)
    reference = typical(base + again)
    slower, extra = ours / reference, ours - reference
    kept = slower <= ALLOWED_RATIO or extra <= ALLOWED_SECONDS
    noisy = not 1 / ALLOWED_RATIO <= second / first <= ALLOWED_RATIO
    cells = [f"{reference * 1e3:.2f}", f"{second / first:.3f}", f"{ours * 1e3:.2f}", f"{slower:.3f}"]
    return [*cells, f"{extra * 1e6:+.0f}", "yes" if kept else "unclear" if noisy else "NO"], kept


def graph_breaks(model: nn.Module, args: Any, kwargs: Any) -> int:
    """Graph breaks that torch.compile meets in one call; 0 too where it skips the whole model (−1 for torch)."""
    torch._dynamo.reset()
    return max(0, torch._dynamo.explain(model)(*args, **kwargs).graph_break_count)


def rows(
    names: Sequence[str] = NETWORKS, *, compiled: bool = True, seconds: float = 20.0, device: str = "cpu"
) -> list[list[str]]:
    """One row per network and way of running; progress goes to standard error."""
    found = []
    for name in names:
        model, args, kwargs = network(name)
        model.to(device)
        args, kwargs = torch.utils._pytree.tree_map(lambda leaf: leaf.to(device), (args, kwargs))
        unified = itnet.unify(model, args or kwargs)
        cells, _ = compare(model, unified, args, kwargs, seconds)
        found.append([name, "eager", *cells])
        _progress(found[-1])
        if compiled:
            breaks = graph_breaks(model, args, kwargs), graph_breaks(unified, args, kwargs)
            torch._dynamo.reset()
            both = torch.compile(model), torch.compile(unified)
            cells, _ = compare(*both, args, kwargs, seconds)
            label = "compile" if breaks[1] <= breaks[0] else f"compile, {breaks[1] - breaks[0]} new graph breaks"
            found.append([name, label, *cells])
            _progress(found[-1])
    return found


def _progress(row: list[str]) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {' '.join(row)}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where the promise is broken."""
    options = arguments(__doc__, argv)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    warnings.simplefilter("ignore")
    found = rows(options.only or NETWORKS, compiled=not options.quick, seconds=6.0 if options.quick else 20.0)
    text = f"Time of the original and of the unified model ({machine()}, batch 2):\n\n{table(HEADER, found)}"
    print(text)
    if options.write:
        readme.put("benchmarks/overhead.py", text)
    return int(any(row[-1] != "yes" or "new" in row[1] for row in found))


if __name__ == "__main__":
    sys.exit(main())
