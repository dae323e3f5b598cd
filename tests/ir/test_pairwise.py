"""Kernels that are programs: text, cost, and agreement with the family's own definition."""

from __future__ import annotations

import torch

from itnet_compiler.ir.domain import Keys
from itnet_compiler.ir.mlp import Mlp
from itnet_compiler.ir.pair.builder import Builder
from itnet_compiler.ir.pair.program import QUERY, SHARED, SOURCE
from itnet_compiler.ir.pairwise import Pairwise, flops_of_pair
from itnet_compiler.lowering.tiled import flattened


def test_the_program_of_an_mlp_is_the_mlp():
    for sample in Mlp.samples():
        operands = sample.operands(torch.float64, torch.Generator().manual_seed(0))
        flat = flattened(operands)
        kernel = sample.spec.kernel
        program = kernel.pair_program(dict(kernel.shapes_of_pair(flat)))
        found = Pairwise(program, kernel.normalise).evaluate(sample.spec.domain, **flat)
        torch.testing.assert_close(found, sample.spec.evaluate(**operands))


def test_the_cost_counts_what_is_left_for_each_pair():
    b = Builder()
    feat_q, feat_k = b.input("feat_q", QUERY, (16,)), b.input("feat_k", SOURCE, (16,))
    total = b.linear(b.cat([feat_q, feat_k], 0), b.input("first", SHARED, (8, 32)))
    program = b.program([b.linear(b.elementwise("relu", total), b.input("second", SHARED, (2, 8)))])
    # one addition and one relu for each of 8 hidden units, a product with (2, 8); W·[u, u'] is split
    assert flops_of_pair(program) == 8 + 8 + 2 * 2 * 8
    kernel = Pairwise(program)
    sample = kernel.miniature(Keys(causal=True), ("value", *(item.name for item in program.inputs)))
    operands = sample.operands(torch.float64, torch.Generator().manual_seed(0))
    batch, heads, sources, width = operands["value"].shape
    pairs = sum(min(i + 1, sources) for i in range(operands["feat_q"].shape[1]))
    work = kernel.work(Keys(causal=True), operands, (sample.spec.evaluate(**operands),))
    assert work.flops == batch * pairs * (8 + 8 + 32 + heads * 2 * width)


def test_description():
    kernel = Pairwise.samples()[0].spec.kernel
    assert kernel.describe() == "mlp(function of pos_q, pos_k, feat_q, feat_k)"
    assert hash(kernel) == hash(Pairwise(kernel.program))
