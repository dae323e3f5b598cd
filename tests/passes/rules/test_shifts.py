"""Sums of shifted copies: every spelling found, every near miss right and accounted for, gradients too."""

import copy

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.ir.stencil import Stencil
from tests.spellings.shifts import NEAR_MISSES, SPELLINGS, Shifts


def _leaves(result):
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _same(model, unified, x):
    grads = []
    for network in (model, unified):
        given = x.clone().requires_grad_()
        outputs = _leaves(network(given))
        total = sum((out * torch.linspace(1, 2, out.numel(), dtype=x.dtype).view_as(out)).sum() for out in outputs)
        slopes = torch.autograd.grad(total, [given, *model.parameters()], allow_unused=True)
        grads.append([*outputs, *slopes])
    bar = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 5e-2}[x.dtype]
    assert [one is None for one in grads[0]] == [one is None for one in grads[1]]
    first, second = (torch.cat([one.flatten() for one in each if one is not None]) for each in grads)
    assert first.shape == second.shape and (first - second).norm() <= bar * first.norm()


def _unified(model, x=None):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 7) if x is None else x
    unified = itnet.unify(model, x)
    found = [node for node in unified.integrals.values() if isinstance(node.kernel, Stencil)]
    return x, (model, unified, found)


class _All(nn.Module):
    """Several programs as one network, which is captured once."""

    def __init__(self, programs):
        super().__init__()
        self.programs = nn.ModuleList(Shifts(program) for program in programs)

    def forward(self, x):
        return [leaf for program in self.programs for leaf in _leaves(program(x))]


@pytest.mark.parametrize("third", range(3))
def test_spellings(third):
    programs = SPELLINGS[third::3]
    _, (model, unified, found) = _unified(_All(programs))
    for place, program in enumerate(programs):
        own = [node for node in found if node.module_path.startswith(f"programs.{place}")]
        assert [node.family for node in own] == ["stationary"] * program.count, program.name
    assert all(node.verification.status == "verified" for node in found)
    assert unified.report().to_dict()["coverage"] == 1.0
    for shape in ((2, 4, 5, 7), (3, 4, 9, 6), (1, 4, 3, 3)):
        _same(model, unified, torch.randn(shape))


@pytest.mark.parametrize("mixes", [0, 1, 2])
def test_near_misses(mixes):
    """The last one has a weight for each place, which fixes the extents of the image."""
    all_of = [program for program in NEAR_MISSES if program.mixes]
    programs = [[program for program in NEAR_MISSES if not program.mixes], all_of[:-1], all_of[-1:]][mixes]
    x, (model, unified, found) = _unified(_All(programs))
    assert not found
    report = unified.report()
    convolutions = len(programs)
    assert report.to_dict()["coverage"] == convolutions / (convolutions + (len(programs) if mixes else 0)), report
    for program in programs:
        assert program.reason in str(report), program.name
    _same(model, unified, x)
    if mixes < 2:
        _same(model, unified, torch.randn(1, 4, 8, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("program", [SPELLINGS[10], SPELLINGS[16]], ids=str)
def test_other_precisions_and_copies(program, dtype):
    x = torch.randn(2, 4, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
    _, (model, unified, found) = _unified(Shifts(program).to(dtype), x)
    assert len(found) == program.count
    _same(model, unified, x)
    again = itnet.unify(copy.deepcopy(unified), x)
    assert torch.equal(again(x), unified(x))
    empty = x[:0]
    assert unified(empty).shape == model(empty).shape


def test_what_is_shared_stays_only_where_it_is_used():
    _, (_, unified, found) = _unified(Shifts(SPELLINGS[11]))
    assert len(found) == 3
    assert "pad" not in {str(node.target) for node in unified.graph.nodes if node.op == "call_function"}
