"""Unify every network that the tests know: what was recognised, what was left alone, whether the outputs are equal.

python -m benchmarks.zoo [--quick] [--only NAME …]
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence

import torch
from torch.utils._pytree import tree_leaves

import itnet
from benchmarks.measure import arguments, machine, table
from tests import foreign
from tests.foreign import hard

HEADER = (
    "network",
    "library",
    "captured",
    "integrals",
    "families",
    "left alone",
    "coverage",
    "largest difference",
    "s",
)
QUICK = ("lstm_stack", "transformer", "mobilenet_v3_small", "convnextv2_atto", "bert", "t5", "detr", "retinanet")


def row(name: str) -> list[str]:
    """One line of the table."""
    where = foreign if name in foreign.names() else hard
    model, args, kwargs = where.build(name)
    start = time.perf_counter()
    unified = itnet.unify(model, args, example_kwargs=kwargs)
    took = time.perf_counter() - start
    with torch.no_grad():
        outputs = []
        for network in (model, unified):
            torch.manual_seed(0)
            outputs.append(tree_leaves(network(*args, **kwargs)))
        pairs = zip(*outputs, strict=True)
        worst = max(_difference(old, new) for old, new in pairs if isinstance(old, torch.Tensor))
    families = Counter(node.family for node in unified.integrals.values())
    report = unified.report()
    facts = report.facts
    captured = "whole" if facts.whole else f"{len(facts.paths)} parts, {facts.share:.0%} of the parameters"
    return [
        name,
        where.group_of(name),
        captured,
        str(len(unified.integrals)),
        ", ".join(f"{count} {family}" for family, count in families.most_common()),
        str(len(report.unmatched)),
        f"{report.coverage:.0%}",
        "0" if worst == 0 else f"{worst:.1e}",
        f"{took:.1f}",
    ]


def _difference(old: torch.Tensor, new: torch.Tensor) -> float:
    if torch.equal(old, new):
        return 0.0
    if old.shape != new.shape:
        return float("inf")
    return float((old.double() - new.double()).norm() / old.double().norm())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a network could not be unified or computes something else."""
    options = arguments(__doc__, argv)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    warnings.simplefilter("ignore")
    found, failed = [], False
    for name in options.only or (QUICK if options.quick else [*foreign.names(), *hard.names()]):
        try:
            found.append(row(name))
        except itnet.ItnetError as error:
            found.append([name, "", "failed", error.reason, "", "", "", "", ""])
            failed = True
        print(" ".join(found[-1]), file=sys.stderr, flush=True)
    print(f"Networks unified ({machine()}, random weights)\n")
    print(table(HEADER, found))
    return int(failed or any(line[7] not in ("", "0") and float(line[7]) > 1e-5 for line in found))


if __name__ == "__main__":
    sys.exit(main())
