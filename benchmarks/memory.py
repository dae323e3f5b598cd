"""How much memory ``unify`` takes beyond the model and one run of it.

    python -m benchmarks.memory [--quick]

Peak resident memory of a process that has built a large BERT (335 million parameters), run it once with gradients, and
loaded the exporter; then again after ``unify`` on the same inputs. Bar: at most a fifth of the parameters' bytes.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence

import torch
from torch import nn

import itnet
from benchmarks.measure import arguments
from tests import foreign

ALLOWED_SHARE = 0.2


def peak() -> float:
    """Peak resident memory of this process in MB; Linux counts it in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 1 where the bar is missed."""
    options = arguments(__doc__, argv)
    foreign.prepare("transformers")
    from transformers import BertConfig, BertModel

    width, layers = (512, 6) if options.quick else (1024, 24)
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4 * width
    )
    model = BertModel(config).eval()
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    ids = torch.ones(2, 32, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.export.export(nn.Linear(2, 2), (torch.zeros(2, 2),))
    model(**inputs)
    before = peak()
    itnet.unify(model, inputs)
    extra = peak() - before
    print(f"parameters {size:.0f} MB; peak {before:.0f} MB before unify, {extra:.0f} MB more after: {extra / size:.1%}")
    return int(not options.quick and extra > ALLOWED_SHARE * size)


if __name__ == "__main__":
    sys.exit(main())
