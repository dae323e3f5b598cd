"""What the tests of pair functions share: a function of one pair for all pairs, in a loop, and as a program."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from itnet_compiler.ir.pair.dense import run
from itnet_compiler.ir.pair.program import QUERY, SHARED, SOURCE
from itnet_compiler.ir.pair.trace import POSITIONAL, trace

SHAPES = ((2,), (2,), (6,), (5,))


def tensors(queries=4, sources=3, dtype=torch.float64):
    """pos_q, pos_k, feat_q, feat_k of all positions."""
    generator = torch.Generator().manual_seed(0)
    counts = (queries, sources, queries, sources)
    return [
        torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for count, shape in zip(counts, SHAPES, strict=True)
    ]


def in_a_loop(function, given, **keywords):
    """The function called for each pair: [queries, sources, …]."""
    pos_q, pos_k, feat_q, feat_k = given
    return torch.stack(
        [
            torch.stack([function(p, q, u, v, **keywords) for q, v in zip(pos_k, feat_k, strict=True)])
            for p, u in zip(pos_q, feat_q, strict=True)
        ]
    )


def traced(function, given, params=None):
    """(traced function, inputs of its program by name with axes for query and source)."""
    found = trace(function, SHAPES, params)
    places = {QUERY: 1, SOURCE: 0}
    inputs = {name: tensor.unsqueeze(places[side]) for (name, side), tensor in zip(POSITIONAL, given, strict=True)}
    for place, leaf in enumerate(pytree.tree_leaves({} if params is None else params)):
        inputs[f"params_{place}"] = leaf.double()[None, None]
    for place, tensor in enumerate(found.captured):
        inputs[f"captured_{place}"] = tensor.double()[None, None]
    assert all(item.side == SHARED or item.name in inputs for item in found.program.inputs)
    return found, inputs


def at_once(program, inputs):
    """The program for all pairs: [queries, sources, …]."""
    (result,) = run(program, {item.name: inputs[item.name] for item in program.inputs}, 2)
    queries, sources = inputs["pos_q"].shape[0], inputs["pos_k"].shape[1]
    return result.expand(queries, sources, *result.shape[2:])
