"""torch.ops.itnet.pair_integral: registration, gradients, tiles of every shape, under compile and export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import itnet_compiler  # noqa: F401  (registers the operators)
from itnet_compiler.errors import InputError
from itnet_compiler.ir.domain import Band, Keys
from itnet_compiler.ir.mlp import Mlp
from itnet_compiler.ir.pairwise import Pairwise
from itnet_compiler.lowering.base import find_lowering
from itnet_compiler.runtime.tiled import plain
from tests.conformance import relative_error

SAMPLES = [sample for family in (Mlp, Pairwise) for sample in family.samples()]


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps the calls of the tiled operators."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "itnet":
            self.seen.append((func, args))
        return func(*args, **(kwargs or {}))


def _network(dtype=torch.float64, lengths=(7, 5), **given):
    """A call with everything in it: (spec, operands)."""
    kernel, domain = Mlp(depth=2, normalise=given.pop("normalise", False)), given.pop("domain", Keys())
    sample = kernel._sample(domain, Mlp.samples()[0].spec.operands, lengths=lengths, **given)
    return sample.spec, sample.operands(dtype, torch.Generator().manual_seed(0))


def _tiled(spec):
    return find_lowering("tiled").build(spec).function


def _live(operands):
    """The same with gradients: (operands, leaves)."""
    leaves = []

    def walk(value):
        if isinstance(value, list):
            return [walk(item) for item in value]
        if value.dtype == torch.bool:
            return value
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1]

    return {role: walk(value) for role, value in operands.items()}, leaves


@pytest.mark.parametrize("normalise", [False, True])
def test_opcheck(normalise):
    spec, operands = _network(normalise=normalise)
    operands, _ = _live(operands)
    with Calls() as calls:
        _tiled(spec)(**operands).sum().backward()
    names = [func.__name__ for func, _ in calls.seen]
    assert names == ["pair_integral.default", "pair_integral_backward.default"]
    for func, args in calls.seen:
        grad = "backward" not in func.__name__
        given = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t, grad=grad: t.detach().requires_grad_(grad and t.requires_grad), args
        )
        torch.library.opcheck(func, given)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("domain", [Keys(), Band(2, 0)], ids=str)
def test_gradcheck(normalise, domain):
    spec, operands = _network(normalise=normalise, domain=domain, lengths=(4, 3), batch=1, heads=2, width=2, hidden=3)
    mask = operands.pop("mask")
    live, leaves = _live(operands)
    layers = len(live["layers"])

    def call(*tensors):
        given = iter(tensors)
        roles = {role: [next(given) for _ in range(layers)] if role == "layers" else next(given) for role in live}
        return _tiled(spec)(**roles, mask=mask)

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("tile", [1, 37, 200, 1 << 18])
@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_plain_tiles_of_any_size(number, tile, monkeypatch):
    monkeypatch.setattr(plain, "TILE", tile)
    sample = SAMPLES[number]
    drawn = sample.operands(torch.float64, torch.Generator().manual_seed(0))
    results = []
    for name in ("tiled", "reference"):
        operands, leaves = _live(drawn)
        output = find_lowering(name).build(sample.spec).function(**operands)
        gradients = torch.autograd.grad(output.square().sum(), leaves, allow_unused=True, materialize_grads=True)
        results.append([output, *gradients])
    assert relative_error(results[0][0], results[1][0]) < 1e-12
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_second_derivatives_are_refused_with_a_remedy():
    spec, operands = _network()
    operands, leaves = _live(operands)
    (gradient,) = torch.autograd.grad(_tiled(spec)(**operands).sum(), leaves[1], create_graph=True)
    with pytest.raises(NotImplementedError, match="Remedy"):
        gradient.sum().backward()


def test_frozen_tensors_get_no_gradient_and_the_others_the_same():
    spec, operands = _network()
    all_live, _ = _live(operands)
    _tiled(spec)(**all_live).square().sum().backward()
    operands["frequencies"] = operands["frequencies"].detach()
    some_live, _ = _live(operands)
    for role in ("frequencies", "query_position", "relative_weight", "value"):
        some_live[role] = operands[role]
    _tiled(spec)(**some_live).square().sum().backward()
    for role in ("query_features", "bias", "measure"):
        torch.testing.assert_close(some_live[role].grad, all_live[role].grad)


class Layer(nn.Module):
    def __init__(self, spec, operands):
        super().__init__()
        self.call = _tiled(spec)
        self.weights = nn.ParameterList(operands.pop("layers"))
        for role in ("query_weight", "source_weight", "relative_weight", "bias", "frequencies", "absolute"):
            setattr(self, role, nn.Parameter(operands.pop(role)))
        self.roles = tuple(operands)

    def forward(self, *inputs):
        shared = {name: parameter for name, parameter in self.named_parameters() if not name.startswith("weights")}
        return self.call(**dict(zip(self.roles, inputs, strict=True)), **shared, layers=list(self.weights))


@pytest.mark.parametrize("normalise", [False, True])
def test_under_compile_and_export(normalise):
    torch._dynamo.reset()
    spec, operands = _network(torch.float32, normalise=normalise)
    layer = Layer(spec, operands)
    inputs = [operands[role] for role in layer.roles]
    expected = layer(*inputs)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), expected)
    gradients = [torch.autograd.grad(run(*inputs).sum(), layer.bias)[0] for run in (layer, compiled)]
    torch.testing.assert_close(*gradients)
    _, longer = _network(torch.float32, lengths=(9, 8), normalise=normalise)
    axes = {role: tuple(torch.export.Dim.AUTO for _ in tensor.shape) for role, tensor in operands.items()}
    program = torch.export.export(layer, tuple(inputs), dynamic_shapes=(tuple(axes[role] for role in layer.roles),))
    torch.testing.assert_close(program.module()(*inputs), expected)
    longer = [longer[role] for role in layer.roles]
    torch.testing.assert_close(program.module()(*longer), layer(*longer))


def test_the_same_bits_every_time():
    spec, operands = _network(torch.float32, lengths=(65, 130))
    runs = []
    for _ in range(2):
        live, leaves = _live(operands)
        output = _tiled(spec)(**live)
        output.sum().backward()
        runs.append([output, *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_what_does_not_fit_the_program_is_refused_before_memory_is_read():
    spec, operands = _network(dtype=torch.float32)
    batch, queries, axes = operands["query_position"].shape
    sources = operands["value"].shape[2]
    for role, tensor in (
        ("mask", torch.ones(batch, queries, sources - 1, dtype=torch.bool)),
        ("mask", torch.ones(batch, queries + 1, sources, dtype=torch.bool)),
        ("query_position", torch.rand(batch, queries, axes + 1)),
        ("source_position", torch.rand(1, sources - 1, axes)),
        ("value", torch.rand(batch, 7, sources, 4)),
    ):
        # What the program cannot even be written for, or torch not multiply, is refused by these.
        with pytest.raises((InputError, RuntimeError, ValueError)) as error:
            _tiled(spec)(**(operands | {role: tensor}))
        if role in ("mask", "value"):
            assert isinstance(error.value, InputError)
