"""Mamba of transformers: a loop over tokens in Python becomes one node a layer, and an order of magnitude shorter.

pip install "itnet-compiler[examples,cpu]"
python examples/mamba.py
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from transformers import MambaConfig, MambaModel
from transformers.utils import logging

import itnet

LENGTH = 256


def seconds(model: nn.Module, tokens: torch.Tensor) -> float:
    """Median time of a call."""
    taken = []
    for _ in range(7):
        started = time.perf_counter()
        model(tokens)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    """Unify a small Mamba with random weights, compare and time both."""
    logging.set_verbosity_error()  # it suggests the CUDA kernels that a Python loop stands in for
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=500, hidden_size=128, num_hidden_layers=2, use_cache=False)
    model = MambaModel(config).eval()
    tokens = torch.randint(500, (1, LENGTH))
    unified = itnet.unify(model, tokens)

    print(unified)
    scans = [node for node in unified.integrals.values() if node.family == "semiseparable"]
    print(f"\n{unified.explain(scans[0].name)}\n")

    assert len(scans) == config.num_hidden_layers
    with torch.no_grad():
        expected, found = model(tokens).last_hidden_state, unified(tokens).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        shorter = tokens[:, : LENGTH // 2]  # the length stays free
        torch.testing.assert_close(unified(shorter)[0], model(shorter)[0], rtol=1e-4, atol=1e-5)
        before, after = seconds(model, tokens), seconds(unified, tokens)
    print(f"{LENGTH} tokens: {1e3 * before:.1f} ms as published, {1e3 * after:.1f} ms unified ({before / after:.1f} ×)")


if __name__ == "__main__":
    main()
