"""The scan operators: values, gradients, shapes, and how they behave under torch's own transformations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from itnet_compiler.runtime.scan import backends, eager
from itnet_compiler.runtime.scan.backends import available

ops = torch.ops.itnet
compiled = pytest.mark.skipif(not available("cpu"), reason="numba is not installed")


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64).to(dtype)


def _selective(batch: int, channels: int, time: int, states: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """u, Δ (channels last in memory, as in the models), A, B, C and a start."""
    delta = F.softplus(_random(batch, time, channels)).transpose(1, 2)
    A, B, C = -_random(channels, states).exp(), _random(batch, states, time, seed=1), _random(batch, states, time)
    return [one.to(dtype) for one in (_random(batch, channels, time), delta, A, B, C, _random(batch, channels, states))]


def _matrix(*batch: int, time: int, keys: int, values: int, decay: int, delta: bool) -> list[Tensor | None]:
    """query, key, value, beta, decay and a start."""
    key = F.normalize(_random(*batch, time, keys, seed=1), dim=-1)
    return [
        _random(*batch, time, keys),
        key,
        _random(*batch, time, values, seed=2),
        torch.sigmoid(_random(*batch, time, 1)) if delta else None,
        torch.sigmoid(_random(*batch, time, decay)) if decay else None,
        _random(*batch, keys, values),
    ]


def _scan(query: Any, key: Any, value: Any, beta: Any, decay: Any, initial: Any) -> Any:
    if beta is None:
        return ops.matrix_scan(query, key, value, decay, initial)
    return ops.delta_scan(query, key, value, beta, decay, initial)


CALLS: dict[str, tuple[Any, list[Any]]] = {
    "linear": (ops.linear_scan, [torch.sigmoid(_random(5, 1, 3)), _random(5, 2, 3), _random(3)]),
    "linear, reverse": (ops.linear_scan, [torch.sigmoid(_random(3)), _random(5, 2, 3), None, True]),
    "linear, complex": (
        ops.linear_scan,
        [torch.polar(torch.sigmoid(_random(3)), _random(3)), _random(5, 2, 3), torch.complex(_random(3), _random(3))],
    ),
    "selective": (ops.selective_scan, _selective(2, 3, 7, 2)[:5]),
    "selective, started": (ops.selective_scan, _selective(1, 17, 3, 2)),
    **{
        f"matrix, decay {decay}, delta {delta}": (_scan, _matrix(2, time=6, keys=3, values=4, decay=decay, delta=delta))
        for decay in (0, 1, 3)
        for delta in (False, True)
    },
}


def _differentiable(arguments: list[Any]) -> list[Any]:
    return [one.detach().clone().requires_grad_() if isinstance(one, Tensor) else one for one in arguments]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("compile_kernels", [False, pytest.param(True, marks=compiled)])
def test_gradients_are_those_of_finite_differences(name, compile_kernels, monkeypatch):
    if not compile_kernels:
        monkeypatch.setattr(backends, "of", lambda tensor: eager)
    function, arguments = CALLS[name]
    assert torch.autograd.gradcheck(function, _differentiable(arguments))


def test_linear_scan_can_be_differentiated_twice():
    function, arguments = CALLS["linear"]
    assert torch.autograd.gradgradcheck(function, _differentiable(arguments))


@pytest.mark.parametrize("name", ["selective", "matrix, decay 1, delta True"])
def test_the_others_say_that_they_cannot(name):
    function, arguments = CALLS[name]
    leaves = _differentiable(arguments)
    y, _ = function(*leaves)
    (slope,) = torch.autograd.grad(y.sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (ops.linear_scan.default, CALLS["linear"][1]),
        (ops.selective_scan.default, CALLS["selective, started"][1]),
        (ops.matrix_scan.default, [*CALLS["matrix, decay 3, delta False"][1][:3], _random(6, 3).sigmoid()]),
        (ops.delta_scan.default, CALLS["matrix, decay 1, delta True"][1]),
    ],
    ids=["linear", "selective", "matrix", "delta"],
)
def test_opcheck(operator, arguments):
    opcheck(operator, tuple(_differentiable(arguments)))


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1), (2, 17, 65, 5), (3, 16, 128, 16), (0, 3, 4, 2), (2, 3, 0, 4), (2, 5, 6, 0)]
)
def test_compiled_selective_scan_is_the_plain_one(sizes, dtype):
    from itnet_compiler.runtime.scan import cpu

    operands = _selective(*sizes, dtype=dtype)
    gradients = [_random(*sizes[:3], seed=3, dtype=dtype), _random(sizes[0], sizes[1], sizes[3], dtype=dtype)]
    _close(cpu.selective_scan(*operands), eager.selective_scan(*operands))
    _close(cpu.selective_scan_backward(*gradients, *operands), eager.selective_scan_backward(*gradients, *operands))


@compiled
@pytest.mark.parametrize("decay", [0, 1, 5])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 17), (2, 130, 16), (9, 19, 17), (0, 3, 2), (2, 0, 3), (2, 4, 0)])
def test_compiled_matrix_scan_is_the_plain_one(sizes, delta, decay):
    from itnet_compiler.runtime.scan import cpu

    rows, time, values = sizes
    operands = _matrix(rows, time=time, keys=5, values=values, decay=decay, delta=delta)
    gradients = (_random(rows, time, values, seed=3), _random(rows, 5, values))
    _close(cpu.matrix_scan(*operands), eager.matrix_scan(*operands))
    _close(cpu.matrix_scan_backward(*gradients, *operands), eager.matrix_scan_backward(*gradients, *operands))


@compiled
@pytest.mark.parametrize("delta", [False, True])
def test_a_matrix_scan_reads_operands_where_they_lie(delta):
    from itnet_compiler.runtime.scan import cpu

    query, key, value = _random(2, 7, 3, 4, 17).permute(2, 0, 3, 1, 4).unbind(0)
    key = torch.nn.functional.normalize(key[..., :5], dim=-1)
    beta = _random(2, 1, 7, 1).expand(2, 4, 7, 1).sigmoid() if delta else None
    given = (query[..., :5], key, value, beta, None, None)
    found, wanted = cpu.matrix_scan(*given), eager.matrix_scan(*given)
    _close(found, wanted)
    assert found[0].stride() == wanted[0].stride() == torch.empty_like(value).stride()
    operator = torch.ops.itnet.delta_scan(*given[:4]) if delta else torch.ops.itnet.matrix_scan(*given[:3])
    assert torch.equal(operator[0], found[0])


@pytest.mark.parametrize("order", [(0, *rest) for rest in itertools.permutations((1, 2, 3))], ids=str)
@pytest.mark.parametrize("delta", [False, True])
def test_a_matrix_scan_takes_operands_in_any_order_of_memory(order, delta):
    back = tuple(order.index(axis) for axis in range(4))
    query, key, value = _random(3, 2, 3, 7, 5).unbind(0)
    key = torch.nn.functional.normalize(key, dim=-1)
    run = torch.ops.itnet.delta_scan if delta else torch.ops.itnet.matrix_scan
    more = [_random(2, 3, 7, 1).sigmoid()] if delta else []
    moved = [one.permute(order).contiguous().permute(back) for one in (query, key, value)]
    for given in ((query, key, moved[2]), moved, (query, key, value[:1, :, :, :1].expand(2, 3, 7, 5))):
        found, wanted = run(*given, *more), eager.matrix_scan(*given, *(more or [None]), None, None)
        _close(found, wanted)
        with FakeTensorMode() as mode:
            imagined = run(*map(mode.from_tensor, (*given, *more)))
        assert [one.stride() for one in imagined] == [one.stride() for one in found]


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (65, 513), (0, 3), (3, 0)])
def test_compiled_linear_scan_is_the_plain_one(sizes, reverse, dtype):
    from itnet_compiler.runtime.scan import cpu

    time, width = sizes
    source, start = _random(time, width).to(dtype), _random(width).to(dtype)
    for shape in ((time, width), (1, width), (time, 1), (1, 1)):
        operands = (torch.sigmoid(_random(*shape)).to(dtype), source, start, reverse)
        _close(cpu.linear_scan(*operands), eager.linear_scan(*operands))


@compiled
@pytest.mark.parametrize("reverse", [False, True])
def test_operands_are_read_where_they_lie(reverse):
    """Axes in any order in memory, decays that broadcast along any of them."""
    from itnet_compiler.runtime.scan import cpu

    for order in ((0, 1, 2, 3), (1, 0, 2, 3), (1, 2, 0, 3), (3, 1, 0, 2), (2, 1, 3, 0)):
        for sizes in ((5, 3, 2, 20), (4, 1, 3, 5), (3, 2, 0, 4), (6, 2, 1, 1), (2, 2, 2, 2)):
            source = _random(*(sizes[axis] for axis in order)).permute(*(order.index(axis) for axis in range(4)))
            assert source.shape == torch.Size(sizes)
            for mask in range(16):
                shape = [size if mask >> axis & 1 else 1 for axis, size in enumerate(sizes)]
                operands = torch.sigmoid(_random(*shape)), source, _random(*sizes[2:]), reverse
                found, wanted = cpu.linear_scan(*operands), eager.linear_scan(*operands)
                _close(found, wanted)
                assert found[0].stride() == wanted[0].stride()


def _close(found: Any, wanted: Any) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is None:
            continue
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.numel():
            bound = 1e-13 if one.dtype in (torch.float64, torch.complex128) else 2e-6
            assert float((one - other).norm()) <= bound * max(1.0, float(other.norm()))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_is_exact_to_a_unit_in_the_last_place(dtype):
    """Through Δ = 1, A = x, h_0 = 1: the state after one step is exp(x)."""
    x = torch.cat([torch.linspace(-750, 710, 40_001), torch.linspace(-104, 89, 40_001), torch.linspace(-1, 1, 40_000)])
    x = torch.cat([x, torch.tensor([0.0, torch.inf, -torch.inf, torch.nan])]).to(dtype)
    ones, none = torch.ones(1, len(x), 1, dtype=dtype), torch.zeros(1, 1, 1, dtype=dtype)
    _, found = ops.selective_scan(torch.zeros_like(ones), ones, x.view(-1, 1), none, none, ones)
    expected = torch.exp(x.double())
    found, rounded = found.view(-1), expected.to(dtype)
    torch.testing.assert_close(found[-4:], rounded[-4:], equal_nan=True)
    finite = rounded.isfinite() & (rounded > torch.finfo(dtype).tiny)
    unit = torch.nextafter(rounded[finite], torch.tensor(torch.inf, dtype=dtype)) - rounded[finite]
    assert float(((found[finite].double() - expected[finite]).abs() / unit).max()) <= 2.0
    assert torch.equal(found[rounded == torch.inf], rounded[rounded == torch.inf])


SPREAD = {
    **CALLS,
    "selective, many": (ops.selective_scan, _selective(3, 100, 33, 4, torch.float32)),
    "matrix, many": (_scan, _matrix(5, 3, time=21, keys=6, values=19, decay=6, delta=False)),
    "sum, many": (_scan, _matrix(5, 3, time=21, keys=6, values=19, decay=0, delta=False)),
}


@compiled
@pytest.mark.parametrize("name", SPREAD)
def test_the_result_does_not_depend_on_the_number_of_threads(name, monkeypatch):
    from itnet_compiler.runtime.scan.cpu import compile as compiling

    monkeypatch.setattr(compiling, "_WORTH", 1e-9)  # microseconds that a thread is woken for
    (function, arguments), before = SPREAD[name], torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            operands = _differentiable(arguments)
            results = function(*operands)
            sum(one.abs().square().sum() for one in results).backward()
            found.append([*results, *(one.grad for one in operands if isinstance(one, Tensor))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_decays_of_zero_and_below_are_factors_like_others():
    states, last = ops.linear_scan(torch.tensor([[0.5], [0.0], [-2.0]]), torch.ones(3, 1), torch.full((1,), 4.0))
    assert states.flatten().tolist() == [3.0, 1.0, -1.0]
    assert last.tolist() == [-1.0]


def test_memory_of_a_forward_pass_does_not_grow_with_states():
    """Nothing of [batch, channels, time, states] is made: the operands, the result and the state."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for one in torch.utils._pytree.tree_leaves(result):
                if isinstance(one, Tensor):
                    self.elements = max(self.elements, one.numel())
            return result

    operands = _selective(2, 8, 40, 16)
    with Largest() as largest:
        ops.selective_scan(*operands)
    assert largest.elements <= 2 * 40 * 16


class Made(TorchDispatchMode):
    """Counts the bytes of all tensors that operators make, but for views and what they return at last."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in torch.utils._pytree.tree_leaves(result):
            if isinstance(one, Tensor):
                self.storages[one.untyped_storage().data_ptr()] = one.untyped_storage()
        return result

    def beyond(self, *known: Tensor) -> int:
        """Bytes of what is none of ``known``."""
        ours = {one.untyped_storage().data_ptr() for one in known}
        return sum(one.nbytes() for place, one in self.storages.items() if place not in ours)


@compiled
def test_memory_beyond_operands_and_results():
    """Forward nothing that grows with time; backward a state in 64 steps, apart from what compiled code keeps."""
    from itnet_compiler.runtime.scan import cpu

    for time in (64, 512):
        batch, channels, states = 2, 256, 16
        u, delta, A, *_ = _selective(batch, channels, time, states, torch.float32)
        B, C = (torch.randn(batch, time, states).transpose(1, 2) for _ in range(2))  # as projections come
        state = batch * channels * states * 4
        with Made() as made:
            y, last = cpu.selective_scan(u, delta, A, B, C, None)
        assert made.beyond(u, delta, A, B, C, y, last) <= state
        operands = (y, last, u, delta, A, B, C, torch.zeros(batch, channels, states))
        with Made() as made:
            found = cpu.selective_scan_backward(*operands)
        assert made.beyond(*operands, *found) <= 2 * state * (time // 64 + 1)


def test_what_does_not_fit_is_refused():
    u, delta, A, B, C, initial = _selective(2, 3, 4, 5)
    with pytest.raises(ValueError, match="B is not"):
        ops.selective_scan(u, delta, A, B[:1], C)
    with pytest.raises(ValueError, match="no real floating dtype"):
        ops.selective_scan(u, delta, A.to(torch.complex128), B, C)
    with pytest.raises(ValueError, match="initial state"):
        ops.selective_scan(u, delta, A, B, C, initial[:, :2])
    with pytest.raises(ValueError, match="decay has the shape"):
        ops.matrix_scan(u, u, u, u[..., :2])
    with pytest.raises(ValueError, match="more axes"):
        ops.linear_scan(torch.ones(3, 2), torch.ones(3))


def test_export_keeps_one_node_and_any_length():
    class Scan(torch.nn.Module):
        def forward(self, *operands: Tensor) -> Tensor:
            return ops.selective_scan(*operands)[0]

    long = torch.export.Dim("time", min=2)
    shapes = ({2: long}, {2: long}, None, {2: long}, {2: long})
    program = torch.export.export(Scan(), tuple(_selective(2, 3, 8, 4)[:5]), dynamic_shapes=(shapes,), strict=False)
    calls = [node for node in program.graph.nodes if "itnet" in str(node.target)]
    assert len(calls) == 1
    other = _selective(2, 3, 19, 4)[:5]
    torch.testing.assert_close(program.module()(*other), ops.selective_scan(*other)[0], rtol=0, atol=0)


@pytest.mark.slow
def test_compile_takes_it_whole():
    arguments = _differentiable(CALLS["selective, started"][1])
    expected = ops.selective_scan(*arguments)
    function = torch.compile(lambda *given: ops.selective_scan(*given), fullgraph=True, backend="aot_eager")
    found = function(*arguments)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    slopes = (torch.autograd.grad([y.sum(), last.sum()], arguments) for y, last in (found, expected))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@compiled
@pytest.mark.parametrize("view", ["negative", "conjugate", "expanded", "reversed rows"])
def test_operands_that_are_views_are_read_as_what_they_are(view):
    pairs = _random(6, 4, 3, 32, dtype=torch.float32)
    other = {
        "negative": torch.view_as_complex(pairs.unflatten(-1, (16, 2)).contiguous()).conj().imag,
        "conjugate": torch.view_as_complex(pairs.unflatten(-1, (16, 2)).contiguous()).conj(),
        "expanded": pairs[:, :1, :, :1].expand(6, 4, 3, 16),
        "reversed rows": pairs.transpose(0, 1)[..., ::2],
    }[view]
    plain = other.resolve_conj().resolve_neg().contiguous()
    decay = torch.sigmoid(_random(*other.shape[1:], dtype=torch.float32))
    for one, two in zip(ops.linear_scan(decay, other), ops.linear_scan(decay, plain), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    if not other.is_complex():
        for one, two in zip(ops.matrix_scan(other, other, other), ops.matrix_scan(*[plain] * 3), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
