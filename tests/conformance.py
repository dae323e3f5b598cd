"""The suite that every kernel family passes: one call per family.

    @pytest.mark.parametrize("case", conformance_cases(Stationary), ids=str)
    def test_conformance(case):
        check_case(case)

Every sample of the family × dtype × contiguous and strided: the exact lowering against the dense definition in float64
of the same values, forward and gradient. Once a sample, in float64: every declared property, the kernel matrix, the
miniature, the seed and the work.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from itnet_compiler.ir.domain import Band, Keys, Past, Window
from itnet_compiler.ir.kernel import Draw, Kernel, Sample
from itnet_compiler.lowering.base import find_lowering

__all__ = ["Case", "check_case", "conformance_cases", "relative_error"]

# Relative L2 error of a forward pass in each dtype; gradients get three times as much.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
PROPERTIES = ("linear", "stationary", "causal", "normalised", "separable")
MINIATURE_LIMIT = 4_000_000
# Operands with a value for every source position.
SOURCES = {"input", "key", "value", "source_position", "source_features", "pos_k", "feat_k"}


@dataclass(frozen=True)
class Case:
    """One check of one sample. ``check``: forward, gradient, a property, matrix, miniature, seed or work."""

    family: str
    number: int
    sample: Sample
    check: str
    dtype: torch.dtype = torch.float64
    strided: bool = False
    lowering: str = "library"

    def __str__(self) -> str:
        layout = ["strided"] if self.strided else []
        precision = [str(self.dtype).removeprefix("torch.")] if self.check in ("forward", "gradient") else []
        return "-".join([self.family, str(self.number), self.sample.spec.origin, self.check, *precision, *layout])

    @property
    def is_exhaustive(self) -> bool:
        """Whether it is left to ``make test-all``: most of half precision, and views of float32."""
        if self.check not in ("forward", "gradient") or self.dtype is torch.float64:
            return False
        return self.strided or (
            self.dtype is not torch.float32 and (self.dtype is torch.float16 or self.number % 3 > 0)
        )

    def generator(self) -> torch.Generator:
        """The same numbers in every run, different ones in every case."""
        return torch.Generator().manual_seed(zlib.crc32(str(self).encode()))


def conformance_cases(family: type[Kernel], lowering: str = "library") -> list[Case]:
    """All cases of a family, for ``pytest.mark.parametrize``."""
    cases = []
    for number, sample in enumerate(family.samples()):
        first = Case(family.family, number, sample, "forward", lowering=lowering)
        complex_ = any(draw.kind == "complex" for draw in _leaves(sample.draws, Draw))
        for dtype in TOLERANCE:
            if complex_ and dtype in (torch.bfloat16, torch.float16):
                continue  # there are no complex numbers of half precision
            for strided in (False, True):
                variant = replace(first, dtype=dtype, strided=strided)
                cases += [variant, replace(variant, check="gradient")]
        declared = sample.spec.kernel.properties(sample.spec.domain)
        unknown = declared - set(PROPERTIES)
        assert not unknown, f"{sample.spec} declares unknown properties {unknown}"
        checks = [*(name for name in PROPERTIES if name in declared), "miniature", "seed", "work"]
        if sample.spec.kernel.reduction == "sum":
            checks.append("matrix")
        cases += [replace(first, check=check) for check in checks]
    return cases


def check_case(case: Case) -> None:
    """Run one case; skips where the library has no kernel for the dtype, or K is no matrix."""
    {"forward": _forward, "gradient": _gradient}.get(case.check, _CHECKS.get(case.check))(case)


def relative_error(actual: Any, expected: Any) -> float:
    """Worst relative L2 error over the floating outputs; infinite where shapes, integers, NaN or ∞ differ."""
    worst = 0.0
    pairs = list(zip(_flatten(actual), _flatten(expected), strict=True))
    for found, wanted in pairs:
        if found.shape != wanted.shape:
            return float("inf")
        if not wanted.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(found, wanted) else float("inf"))
            continue
        found, wanted = found.detach().double(), wanted.detach().double()
        finite = wanted.isfinite()
        if not torch.equal(finite, found.isfinite()) or not torch.equal(found[wanted.isinf()], wanted[wanted.isinf()]):
            return float("inf")
        norm = wanted[finite].norm().item()
        distance = (found[finite] - wanted[finite]).norm().item()
        worst = max(worst, distance / norm if norm else distance)
    return worst


# -- Lowering against definition ---------------------------------------------------------------------------------


def _forward(case: Case) -> None:
    operands = case.sample.operands(case.dtype, case.generator(), strided=case.strided)
    actual = _library(case, operands)
    expected = _definition(case.sample, _cast(operands, torch.float64))
    for found in _flatten(actual):
        assert not found.is_floating_point() or found.dtype == case.dtype, f"{found.dtype} out of {case.dtype}"
    error = relative_error(actual, expected)
    assert error <= TOLERANCE[case.dtype], f"forward error {error:.2e}"


def _gradient(case: Case) -> None:
    drawn = case.sample.operands(case.dtype, case.generator(), strided=case.strided)
    actual, leaves = _with_gradients(case, drawn)
    outputs = _flatten(_library(case, actual))
    cotangents = [
        torch.randn(out.shape, generator=case.generator(), dtype=torch.float64).to(out.dtype)
        for out in outputs
        if out.requires_grad
    ]
    found = _pull(case, outputs, leaves, cotangents)
    actual, leaves = _with_gradients(case, _cast(drawn, torch.float64))
    expected = _pull(case, _flatten(_definition(case.sample, actual)), leaves, _cast(cotangents, torch.float64))
    assert len(found) == len(expected)
    # A gradient much smaller than its neighbours is compared on their scale: it is what is left of a cancellation.
    scale = torch.stack([value.double().norm() for value in expected]).max().item()
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, case.dtype)
        norm = max(theirs.norm().item(), 0.1 * scale)
        error = (mine.double() - theirs).norm().item()
        assert error <= 3 * TOLERANCE[case.dtype] * max(norm, 1e-30), f"gradient error {error:.2e} of {norm:.2e}"


def _library(case: Case, operands: dict[str, Any]) -> Any:
    lowering = find_lowering(case.lowering)
    support = lowering.supports(case.sample.spec)
    assert support.ok, support.reasons
    function = lowering.build(case.sample.spec).function
    with _skip_missing_kernels(case):
        return function(**operands)


@contextmanager
def _skip_missing_kernels(case: Case) -> Iterator[None]:
    """Skip, not fail, where the library itself has no kernel for half precision on this device."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if case.dtype in (torch.float16, torch.bfloat16) and any(
            phrase in str(error) for phrase in ("not implemented for", "Unsupported dtype")
        ):
            pytest.skip(f"library: {error}")
        raise


def _pull(case: Case, outputs: list[Tensor], leaves: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    with _skip_missing_kernels(case):
        live = [out for out in outputs if out.requires_grad]
        found = torch.autograd.grad(live, leaves, cotangents, allow_unused=True, materialize_grads=True)
        return _flatten(found)


def _definition(sample: Sample, operands: dict[str, Any]) -> Any:
    return find_lowering("reference").build(sample.spec).function(**operands)


# -- Properties --------------------------------------------------------------------------------------------------


def _draw(case: Case) -> dict[str, Any]:
    return case.sample.operands(torch.float64, case.generator())


def _value_role(sample: Sample) -> str:
    """The operand that v acts on."""
    return "value" if "value" in sample.draws else "input"


def _first(output: Any) -> Tensor:
    return _flatten(output)[0]


def _linear(case: Case) -> None:
    """Superposition. A bias or an initial state makes it affine: its value at zero counts once on either side."""
    operands, role = _draw(case), _value_role(case.sample)
    one, two = operands[role], torch.randn(operands[role].shape, generator=case.generator(), dtype=torch.float64)

    def apply(value: Tensor) -> Tensor:
        return _first(_definition(case.sample, operands | {role: value}))

    zero = apply(torch.zeros_like(one))
    assert {"bias", "initial"} & set(operands) or not zero.any(), "a linear layer maps zero to zero"
    error = relative_error(apply(2 * one - 3 * two), 2 * apply(one) - 3 * apply(two) + 2 * zero)
    assert error <= 1e-12, f"superposition fails by {error:.2e}"


def _normalised(case: Case) -> None:
    operands, role = _draw(case), _value_role(case.sample)
    output = _first(_definition(case.sample, operands | {role: torch.ones_like(operands[role])}))
    error = relative_error(output, torch.ones_like(output))
    assert error <= 1e-12, f"constant values come out changed by {error:.2e}"


def _position_axes(sample: Sample) -> tuple[int, int]:
    """Axis of positions in the value operand and in the output."""
    if isinstance(sample.spec.domain, (Keys, Band)):
        return -2, -2
    if (axis := getattr(sample.spec.kernel, "time_axis", None)) is not None:
        return axis, axis
    if isinstance(sample.spec.domain, Past):
        axis = 1 if getattr(sample.spec.kernel, "batch_first", False) else 0
        return axis, axis
    return _window_axes(sample)[-1]


def _window_axes(sample: Sample) -> list[tuple[int, int]]:
    """Axes of positions in the value operand and in the output, one pair for each axis of the window."""
    if not hasattr(sample.spec.kernel, "position_axes"):
        rank = getattr(sample.spec.domain, "rank", 1)
        return [(axis - rank, axis - rank) for axis in range(rank)]
    found = sample.spec.kernel.position_axes()
    return pytest.skip("the positions are merged") if found is None else found


def _causal(case: Case) -> None:
    """Whatever happens to sources after a position, the outputs up to it stay the same."""
    operands, (source_axis, output_axis) = _draw(case), _position_axes(case.sample)
    before = _first(_definition(case.sample, operands))
    count = operands[_value_role(case.sample)].shape[source_axis]
    for cut in sorted({1, count // 2, count - 1} & set(range(1, count))):
        changed = dict(operands)
        for role in SOURCES & set(operands):
            changed[role] = operands[role].clone()
            changed[role].narrow(source_axis, cut, count - cut).mul_(-1).add_(1)
        after = _first(_definition(case.sample, changed))
        kept = min(cut, before.shape[output_axis])
        error = relative_error(after.narrow(output_axis, 0, kept), before.narrow(output_axis, 0, kept))
        assert error <= 1e-12, f"outputs before {cut} depend on later sources ({error:.2e})"


def _stationary(case: Case) -> None:
    """Shift-equivariance: a source moved by one output step (by one position where transposed) moves the output."""
    domain, operands, role = case.sample.spec.domain, _draw(case), _value_role(case.sample)
    assert isinstance(domain, Window), "stationarity is only tested on windows"
    fill = float("-inf") if case.sample.spec.kernel.reduction == "max" else 0.0
    for axis, (dim, output_dim) in enumerate(_window_axes(case.sample)):
        source_step, output_step = (1, domain.stride[axis]) if domain.transposed else (domain.stride[axis], 1)
        value = operands[role]
        if domain.boundary == "circular":
            here, there = value, value.roll(source_step, dim)
        else:
            space = torch.full_like(value.narrow(dim, 0, 1), fill).expand(
                [source_step if i == dim % value.dim() else n for i, n in enumerate(value.shape)]
            )
            here, there = torch.cat([value, space], dim), torch.cat([space, value], dim)
        fixed, moved = (_first(_definition(case.sample, operands | {role: source})) for source in (here, there))
        length = fixed.shape[output_dim] - output_step
        error = relative_error(moved.narrow(output_dim, output_step, length), fixed.narrow(output_dim, 0, length))
        assert error <= 1e-12, f"not shift-equivariant along axis {axis} ({error:.2e})"


def _separable(case: Case) -> None:
    """K factors into a query and a source part: its matrix has the rank of their feature axis (1 unless told)."""
    kernel, operands = case.sample.spec.kernel, _draw(case)
    matrix = kernel.kernel_matrix(case.sample.spec.domain, **operands)
    rank = kernel.separable_rank(operands) if hasattr(kernel, "separable_rank") else 1
    if matrix.numel():
        assert int(torch.linalg.matrix_rank(matrix).max()) <= rank


# -- Matrix, miniature, seed, work -------------------------------------------------------------------------------


def _matrix(case: Case) -> None:
    """K applied to the values is the layer. Two axes act on flattened positions, more act on the last two."""
    spec, operands, role = case.sample.spec, _draw(case), _value_role(case.sample)
    try:
        matrix = spec.kernel.kernel_matrix(spec.domain, **operands)
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    value, output = operands[role], _first(_definition(case.sample, operands))
    offset = _first(_definition(case.sample, operands | {role: torch.zeros_like(value)}))
    if hasattr(spec.kernel, "apply_matrix"):
        found = _first(spec.kernel.apply_matrix(spec.domain, matrix, **operands))
    elif matrix.dim() == 2:
        rows = value.numel() // matrix.shape[1] if matrix.shape[1] else 0
        found = (value.reshape(rows, matrix.shape[1]) @ matrix.T).reshape(output.shape)
    else:
        found = matrix @ value
    error = relative_error(found + offset, output)
    assert error <= 1e-12, f"the kernel matrix differs from the layer by {error:.2e}"


def _miniature(case: Case) -> None:
    """Small, distinct sizes, the same structure and operands, and both lowerings agree on it."""
    spec = case.sample.spec
    small = spec.miniature()
    assert (type(small.spec.kernel), small.spec.domain) == (type(spec.kernel), spec.domain)
    assert small.spec.kernel.properties(small.spec.domain) == spec.kernel.properties(spec.domain)
    assert small.spec.operands == spec.operands == tuple(small.draws)
    assert sum(prod(draw.shape) for draw in _flatten(dict(small.draws), Draw)) <= MINIATURE_LIMIT
    shape = small.draws[_value_role(small)].shape
    assert len(set(shape)) == len(shape), f"sizes {shape} are not all different"
    operands = small.operands(torch.float64, case.generator())
    outputs = [find_lowering(name).build(small.spec).function(**operands) for name in (case.lowering, "reference")]
    assert all(out.numel() for out in _flatten(outputs[1])), "a miniature with nothing to compare"
    error = relative_error(*outputs)
    assert error <= 1e-12, f"lowering and definition differ by {error:.2e} on the miniature"


def _seed(case: Case) -> None:
    for sample in (case.sample, case.sample.spec.miniature()):
        first, second = (sample.operands(torch.float64, case.generator()) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(_flatten(first), _flatten(second), strict=True))


def _work(case: Case) -> None:
    """Cost is plain integers, from shapes alone."""
    operands = _draw(case)
    outputs = tuple(_flatten(_definition(case.sample, operands)))
    found = case.sample.spec.kernel.work(
        case.sample.spec.domain, _meta(operands), tuple(out.to("meta") for out in outputs)
    )
    for count in (found.flops, found.bytes):
        assert type(count) is int
        assert count >= 0
    if outputs[0].numel():
        assert found.bytes >= outputs[0].numel() * outputs[0].element_size()


_CHECKS = {
    "linear": _linear,
    "normalised": _normalised,
    "causal": _causal,
    "stationary": _stationary,
    "separable": _separable,
    "matrix": _matrix,
    "miniature": _miniature,
    "seed": _seed,
    "work": _work,
}


# -- Nested operands ---------------------------------------------------------------------------------------------


def _leaves(value: Any, kind: type) -> Iterator[Any]:
    if isinstance(value, Tensor) and kind is Tensor and value.is_complex():
        yield torch.view_as_real(value.resolve_conj())
    elif isinstance(value, kind):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item, kind)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item, kind)


def _flatten(value: Any, kind: type = Tensor) -> list[Any]:
    """Every ``kind`` in a value that may be nested, in order; complex tensors as pairs of real numbers."""
    return list(_leaves(value, kind))


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, change) for item in value)
    return change(value) if isinstance(value, Tensor) else value


def _cast(value: Any, dtype: torch.dtype) -> Any:
    def one(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(torch.promote_types(dtype, torch.complex64))
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return _map(value, one)


def _meta(value: Any) -> Any:
    return _map(value, lambda tensor: tensor.to("meta"))


def _with_gradients(case: Case, operands: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """Operands whose random floating tensors (masks are none) record gradients, and these tensors in order."""
    leaves: list[Tensor] = []

    def walk(draw: Any, value: Any) -> Any:
        if isinstance(draw, Draw):
            if draw.kind in ("bool", "mask"):
                return value
            leaves.append(value.detach().requires_grad_())
            return leaves[-1]
        if isinstance(draw, (list, tuple)):
            return [walk(*pair) for pair in zip(draw, value, strict=True)]
        return value

    return {role: walk(case.sample.draws[role], value) for role, value in operands.items()}, leaves
