"""Machine code against the tiles in plain torch: every primitive, every vector width, any number of threads."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("llvmlite")

from itnet_compiler.ir.domain import Band, Keys
from itnet_compiler.ir.mlp import Mlp
from itnet_compiler.ir.pair.split import distribute, stages
from itnet_compiler.lowering.base import find_lowering
from itnet_compiler.lowering.tiled import integrate
from itnet_compiler.runtime.tiled import backends, machine, native, operators, vector_code
from tests.ir.pair.functions import FUNCTIONS
from tests.ir.pair.pairs import tensors, traced


@pytest.fixture
def path(monkeypatch):
    """Names of the back ends that ran."""
    seen = []

    def spy(problem):
        module = backends.backend(problem)
        seen.append(module.__name__.rpartition(".")[2])
        return module

    monkeypatch.setattr(operators, "backend", spy)
    return seen


def _lanes(monkeypatch, count):
    monkeypatch.setattr(native, "lanes", lambda: count)


def _run(name, dtype, normalise):
    """Output and gradients of the integral of a pair function."""
    function, params = FUNCTIONS[name]
    given = tensors(queries=9, sources=70)
    found, inputs = traced(function, given, params)
    leaves = {}
    for item in found.program.inputs:
        tensor = inputs[item.name]
        flat = tensor[0, 0] if item.side == 0 else (tensor[:, 0] if item.side == 1 else tensor[0])[None]
        leaves[item.name] = flat.detach().to(dtype).requires_grad_()
    heads = 3
    value = torch.randn(2, heads, 70, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaves["value"] = value.to(dtype).requires_grad_()
    inside = {key: leaf for key, leaf in leaves.items() if key != "value"}
    like = torch.empty(9, 1)
    output = integrate(
        str(found.program),
        list(inside.values()),
        leaves["value"],
        normalise=normalise,
        domain=Keys(),
        like_queries=like,
    )
    pull = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape).to(dtype)
    gradients = torch.autograd.grad(output, list(leaves.values()), pull, allow_unused=True, materialize_grads=True)
    return [output, *gradients]


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_pair_functions_in_many_spellings(name, normalise, path):
    expected = _run(name, torch.float64, normalise)
    found = _run(name, torch.float32, normalise)
    program, _ = traced(FUNCTIONS[name][0], tensors(), FUNCTIONS[name][1])
    possible = not vector_code.unsupported(stages(distribute(program.program)).core)
    assert path == ["plain"] * 2 + ["native" if possible else "plain"] * 2
    scale = max(tensor.norm().item() for tensor in expected[1:])
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.double() - theirs).norm() <= 2e-5 * max(theirs.norm().item(), 0.1 * scale)


def _mlp(domain=None, normalise=True, lengths=(33, 150), masked=True, **sizes):
    domain = domain or Keys()
    roles = [role for role in Mlp.samples()[0].spec.operands if masked or role != "mask"]
    sample = Mlp(normalise=normalise)._sample(domain, tuple(roles), lengths=lengths, **sizes)
    operands = sample.operands(torch.float32, torch.Generator().manual_seed(0))
    leaves = [tensor for tensor in operands.values() if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()]
    leaves += operands["layers"]
    for leaf in leaves:
        leaf.requires_grad_()

    def call(name="tiled"):
        output = find_lowering(name).build(sample.spec).function(**operands)
        return [output, *torch.autograd.grad(output.square().sum(), leaves, allow_unused=True, materialize_grads=True)]

    return call


@pytest.mark.parametrize("count", [4, 8, 16])
def test_every_vector_width(count, monkeypatch, path):
    _lanes(monkeypatch, count)
    call = _mlp(Band(70, 3), lengths=(33, 90))
    for mine, theirs in zip(call(), call("reference"), strict=True):
        assert (mine - theirs).norm() <= 1e-4 * (theirs.norm() + 1)  # entries may cancel
    assert path == ["native"] * 2


@pytest.mark.parametrize(
    ("domain", "lengths"),
    [(Keys(causal=True), (130, 130)), (Band(5, 0), (200, 200)), (Band(0, 0), (65, 70)), (Band(None, 2), (64, 128))],
    ids=str,
)
@pytest.mark.parametrize("normalise", [False, True])
def test_bands_skip_tiles_and_nothing_else(domain, lengths, normalise, path):
    call = _mlp(domain, normalise, lengths, masked=False)
    for mine, theirs in zip(call(), call("reference"), strict=True):
        assert (mine - theirs).norm() <= 1e-4 * (theirs.norm() + 1)  # entries may cancel
    assert path == ["native"] * 2


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(native, "_SMALLEST", 1)
    call = _mlp(batch=1)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(call())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_last_tile_repeats_a_source_and_so_makes_no_nan(path):
    """1 / (p − p' + 2) would be 1/0 at the zeros that a padded tile could hold."""
    text = "\n".join(
        [
            '%0 [] input ["p",1]',
            '%1 [] input ["q",2]',
            "%2 [] sub %0 %1",
            "%3 [] constant [2.0]",
            "%4 [] add %2 %3",
            "%5 [] reciprocal %4",
            "return %5",
        ]
    )
    p = torch.full((1, 3), -2.0, requires_grad=True)
    q = torch.arange(1.0, 6.0)[None]
    output = integrate(text, [p, q], torch.ones(1, 1, 5, 1), domain=Keys())
    torch.testing.assert_close(output.flatten(), (-1 / q).sum().expand(3))
    (gradient,) = torch.autograd.grad(output.sum(), p)
    torch.testing.assert_close(gradient, (-1 / q**2).sum().expand(1, 3))
    assert path == ["native"] * 2


def test_code_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("ITNET_CACHE", str(tmp_path))
    text = 'define void @"run"(i64 %"x") {\n  ret void\n}\n'
    run, scratch = machine.compiled("key", 1, lambda: machine.Written(text, 7))
    run(1)
    (file,) = (tmp_path / "tiled").iterdir()
    again, same = machine.compiled("key", 1, lambda: pytest.fail("written again"))
    again(1)
    assert (file.suffix, scratch, same) == (".o", 7, 7)
    machine.compiled("other key", 1, lambda: machine.Written(text, 7))
    assert len(list((tmp_path / "tiled").iterdir())) == 2


def test_without_llvmlite_it_is_slower_and_the_same(monkeypatch, path):
    call = _mlp()
    fast = call()
    monkeypatch.setattr(backends, "available", lambda device: False)
    for mine, theirs in zip(call(), fast, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * (theirs.norm() + 1)  # entries may cancel
    assert path == ["native"] * 2 + ["plain"] * 2
