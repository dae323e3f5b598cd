"""The scan operators: schema, shapes, gradients. What computes them is chosen in ``backends``.

    linear_scan     h_t = a_t ⊙ h_{t−1} + x_t                                         over dimension 0
    selective_scan  h_t = exp(Δ_t ⊗ A) ⊙ h_{t−1} + (Δ_t u_t) ⊗ B_t,   y_t = Σ_n h_t[·, n] C_t[n]
                                                                      Mamba, arXiv:2312.00752, equation 2
    matrix_scan     S_t = diag(a_t) S_{t−1} + k_t v_tᵀ,   y_t = S_tᵀ q_t
                                                                      linear attention, RetNet, Mamba-2, GLA
    delta_scan      S_t = (I − β_t k_t k_tᵀ) diag(a_t) S_{t−1} + β_t k_t v_tᵀ,   y_t = S_tᵀ q_t
                                                                      gated delta rule, arXiv:2412.06464, equation 10

Each takes an ``initial`` state (zero where it is None) and returns the outputs of all steps and the state after the
last one, so that a sequence can be fed in pieces. Decays are factors, not logarithms: a factor may be 0 or negative,
and nothing is lost where a model computes one otherwise than through exp. Outputs have the dtype that the operands
promote to, but that a float32 decay leaves half precision what it is; half precision accumulates in float32. Nothing
is random and every sum has a fixed order, whatever the number of threads.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..registering import keep_nothing, register
from . import backends, eager

__all__ = ["LIBRARY"]

LIBRARY = torch.library.Library("itnet", "FRAGMENT")

Tensors = tuple[Tensor, ...]


def _promoted(*tensors: Tensor | None) -> torch.dtype:
    present = {tensor.dtype for tensor in tensors if tensor is not None}
    return present.pop() if len(present) == 1 else reduce(torch.promote_types, present)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a recurrence of ``dtype`` accumulates."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _in(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in a dtype; to ask it first is faster than to let ``to`` find out."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _sum_to(gradient: Tensor, operand: Tensor) -> Tensor:
    """The gradient of an operand that was broadcast, in its own dtype."""
    return gradient.sum_to_size(operand.shape).to(operand.dtype)


def _once(name: str) -> Any:
    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(f"the gradient of itnet::{name} cannot be differentiated again")

    return refuse


# -- linear_scan -------------------------------------------------------------------------------------------------

LIBRARY.define(
    "linear_scan(Tensor decay, Tensor input, Tensor? initial=None, bool reverse=False) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _linear_dtype(decay: Tensor, input: Tensor, initial: Tensor | None) -> torch.dtype:
    _check(input.dim() >= 1, "linear_scan: the input has no time axis")
    _check(decay.dim() <= input.dim(), "linear_scan: the decay has more axes than the input")
    dtype = _promoted(input, initial)
    if not (decay.dtype == torch.float32 and _wide(dtype) == torch.float32):
        dtype = torch.promote_types(dtype, decay.dtype)
    _check(dtype.is_floating_point or dtype.is_complex, "linear_scan: an integer dtype")
    return dtype


def _linear_scan(decay: Tensor, input: Tensor, initial: Tensor | None = None, reverse: bool = False) -> Tensors:
    dtype = _linear_dtype(decay, input, initial)
    wide = _wide(dtype)
    factors = _aligned(_in(decay, wide), input)
    start = None if initial is None else _in(initial, wide)
    states, last = backends.of(input).linear_scan(factors, _in(input, wide), start, reverse)
    return _in(states, dtype), _in(last, dtype)


def _aligned(decay: Tensor, input: Tensor) -> Tensor:
    """The decay with as many axes as the input."""
    missing = input.dim() - decay.dim()
    return decay.reshape((1,) * missing + decay.shape) if missing else decay


def _linear_shapes(decay: Tensor, input: Tensor, initial: Tensor | None = None, reverse: bool = False) -> Tensors:
    dtype = _linear_dtype(decay, input, initial)
    return torch.empty_like(input, dtype=dtype), input.new_empty(input.shape[1:], dtype=dtype)


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    decay, input, initial, ctx.reverse = inputs
    ctx.save_for_backward(decay, input, initial, output[0])
    ctx.set_materialize_grads(False)


def _linear_backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> tuple[Any, ...]:
    """G_t = g_t + ā_{t+1} G_{t+1}: the same scan, the other way round; ∂a_t = G_t h̄_{t−1}."""
    decay, input, initial, states = ctx.saved_tensors
    # Arguments that have their defaults are not in it.
    of_decay, of_input, of_initial = (*ctx.needs_input_grad, False)[:3]
    of_initial = of_initial and initial is not None
    grad = torch.zeros_like(states) if grad is None else grad
    if input.shape[0] == 0:
        began = torch.zeros_like(initial) if of_initial else None
        if of_initial and grad_last is not None:
            began = _sum_to(grad_last, initial)
        return torch.zeros_like(decay), torch.zeros_like(input), began, None
    first, final = (-1, 0) if ctx.reverse else (0, -1)
    follows = -1 if ctx.reverse else 1
    factors = _aligned(decay, input)
    if grad_last is not None:
        grad = grad.select_scatter(grad.select(0, final) + grad_last, 0, final)
    later = factors.roll(-follows, 0) if factors.shape[0] > 1 else factors
    carried, _ = torch.ops.itnet.linear_scan(later.conj(), grad, None, not ctx.reverse)
    slope = began = None
    if of_decay:
        start = torch.zeros_like(states.select(0, 0)) if initial is None else initial.to(states.dtype)
        before = states.roll(follows, 0).select_scatter(start.expand(states.shape[1:]), 0, first)
        slope = _sum_to(_real_where(carried * before.conj(), decay), decay)
    if of_initial:
        began = carried.select(0, first) * factors.select(0, first if factors.shape[0] > 1 else 0).conj()
        began = _sum_to(_real_where(began, initial), initial)
    return slope, _real_where(carried, input).to(input.dtype) if of_input else None, began, None


def _real_where(gradient: Tensor, operand: Tensor) -> Tensor:
    """A real operand of a complex recurrence has the real part of the gradient."""
    return gradient.real if gradient.is_complex() and not operand.is_complex() else gradient


# -- selective_scan ----------------------------------------------------------------------------------------------

LIBRARY.define(
    "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? initial=None) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "selective_scan_backward(Tensor grad, Tensor grad_last, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,"
    " Tensor? initial=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _selective_check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None) -> torch.dtype:
    dtype = _promoted(u, delta, A, B, C, initial)
    _check(dtype.is_floating_point, f"selective_scan: {dtype} is no real floating dtype")
    _check(u.dim() == 3 and u.shape == delta.shape, "selective_scan: u and delta are not both [batch, channels, time]")
    batch, channels, time = u.shape
    _check(A.dim() == 2 and A.shape[0] == channels, "selective_scan: A is not [channels, states]")
    for name, tensor in (("B", B), ("C", C)):
        _check(tensor.shape == (batch, A.shape[1], time), f"selective_scan: {name} is not [batch, states, time]")
    if initial is not None:
        _check(initial.shape == (batch, *A.shape), "selective_scan: the initial state is not [batch, channels, states]")
    return dtype


def _selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None = None
) -> Tensors:
    dtype = _selective_check(u, delta, A, B, C, initial)
    wide = _wide(dtype)
    operands = [tensor.to(wide) for tensor in (u, delta, A, B, C)]
    start = None if initial is None else initial.to(wide)
    y, last = backends.of(u).selective_scan(*operands, start)
    return y.to(dtype), last.to(dtype)


def _selective_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None = None
) -> Tensors:
    dtype = _selective_check(u, delta, A, B, C, initial)
    return u.new_empty(u.shape, dtype=dtype), u.new_empty((u.shape[0], *A.shape), dtype=dtype)


def _selective_gradients(
    grad: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None = None,
) -> Tensors:
    operands = (u, delta, A, B, C, u.new_zeros((u.shape[0], *A.shape), dtype=A.dtype) if initial is None else initial)
    wide = _wide(_promoted(*operands))
    found = backends.of(u).selective_scan_backward(*(tensor.to(wide) for tensor in (grad, grad_last, *operands)))
    return tuple(value.to(operand.dtype) for value, operand in zip(found, operands, strict=True))


def _selective_gradient_shapes(
    grad: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None = None,
) -> Tensors:
    operands = (u, delta, A, B, C, u.new_empty((u.shape[0], *A.shape), dtype=A.dtype) if initial is None else initial)
    return tuple(operand.new_empty(operand.shape) for operand in operands)


def _selective_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    ctx.save_for_backward(*inputs)


def _selective_backward(ctx: Any, grad: Tensor, grad_last: Tensor) -> tuple[Any, ...]:
    found = torch.ops.itnet.selective_scan_backward(grad, grad_last, *ctx.saved_tensors)
    return (*found[:5], None if ctx.saved_tensors[5] is None else found[5])


# -- matrix_scan and delta_scan ----------------------------------------------------------------------------------

LIBRARY.define(
    "matrix_scan(Tensor query, Tensor key, Tensor value, Tensor? decay=None, Tensor? initial=None) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "delta_scan(Tensor query, Tensor key, Tensor value, Tensor beta, Tensor? decay=None, Tensor? initial=None)"
    " -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "matrix_scan_backward(Tensor grad, Tensor grad_last, Tensor query, Tensor key, Tensor value, Tensor? beta,"
    " Tensor? decay, Tensor? initial) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


class _Matrix:
    """The operands of a matrix scan with one common batch shape."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        beta: Tensor | None,
        decay: Tensor | None,
        initial: Tensor | None,
    ) -> None:
        given = (query, key, value, beta, decay, initial)
        self.dtype = _promoted(*given)
        _check(self.dtype.is_floating_point, f"matrix_scan: {self.dtype} is no real floating dtype")
        _check(all(one is None or one.dim() >= 2 for one in given), "matrix_scan: an operand has fewer than two axes")
        self.time, self.keys, self.values = query.shape[-2], query.shape[-1], value.shape[-1]
        names = ("query", "key", "value", "beta", "decay")
        widths = ((self.keys,), (self.keys,), (self.values,), (1,), (1, self.keys))
        for name, tensor, allowed in zip(names, given, widths, strict=False):
            if tensor is not None:
                fits = tensor.shape[-2] == self.time and any(tensor.shape[-1] == width for width in allowed)
                _check(fits, f"matrix_scan: {name} has the shape {tuple(tensor.shape)}")
        if initial is not None:
            _check(initial.shape[-2:] == (self.keys, self.values), "matrix_scan: the initial state is not […, K, V]")
        shapes = [one.shape[:-2] for one in given if one is not None]
        same = all(shape == shapes[0] for shape in shapes)
        self.batch = shapes[0] if same else torch.broadcast_shapes(*shapes)
        self.given = given

    def whole(self) -> list[Tensor | None]:
        """Operands [*batch, T, ·] in the dtype of accumulation, where they lie; a None stays None."""
        wide = _wide(self.dtype)
        return [None if one is None else self._spread(_in(one, wide)) for one in self.given]

    def _spread(self, tensor: Tensor) -> Tensor:
        own = tensor.shape
        return tensor if own[:-2] == self.batch else tensor.expand(*self.batch, *own[-2:])

    def flat(self) -> list[Tensor | None]:
        """The same, contiguous and flattened to [P, T, ·]."""
        rows = self.batch.numel()
        return [None if one is None else one.reshape(rows, *one.shape[-2:]).contiguous() for one in self.whole()]


def _matrix_run(operands: _Matrix) -> Tensors:
    query, *rest = operands.whole()
    assert query is not None
    y, last = backends.of(query).matrix_scan(query, *rest)
    return _in(y, operands.dtype), _in(last, operands.dtype)


def _matrix_scan(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor | None = None, initial: Tensor | None = None
) -> Tensors:
    return _matrix_run(_Matrix(query, key, value, None, decay, initial))


def _delta_scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    initial: Tensor | None = None,
) -> Tensors:
    return _matrix_run(_Matrix(query, key, value, beta, decay, initial))


def _matrix_empty(operands: _Matrix) -> Tensors:
    query, _, value, *_ = operands.whole()
    assert query is not None
    assert value is not None
    last = query.new_empty((*operands.batch, operands.keys, operands.values), dtype=operands.dtype)
    return eager.empty_result(value, operands.dtype), last


def _matrix_shapes(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor | None = None, initial: Tensor | None = None
) -> Tensors:
    return _matrix_empty(_Matrix(query, key, value, None, decay, initial))


def _delta_shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    initial: Tensor | None = None,
) -> Tensors:
    return _matrix_empty(_Matrix(query, key, value, beta, decay, initial))


def _matrix_gradients(grad: Tensor, grad_last: Tensor, *given: Tensor | None) -> Tensors:
    operands = _Matrix(*given)  # type: ignore[arg-type]
    rows, wide = operands.batch.numel(), _wide(operands.dtype)
    found = backends.of(grad).matrix_scan_backward(
        grad.to(wide).reshape(rows, operands.time, operands.values).contiguous(),
        grad_last.to(wide).reshape(rows, operands.keys, operands.values).contiguous(),
        *operands.flat(),
    )
    results = []
    for value, operand in zip(found, given, strict=True):
        if operand is None:
            results.append(grad.new_empty(0))
        else:
            assert value is not None
            results.append(_sum_to(value.view(*operands.batch, *value.shape[-2:]), operand))
    return tuple(results)


def _matrix_gradient_shapes(grad: Tensor, grad_last: Tensor, *given: Tensor | None) -> Tensors:
    return tuple(grad.new_empty(0) if one is None else one.new_empty(one.shape) for one in given)


def _matrix_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    query, key, value, *rest = inputs
    ctx.save_for_backward(query, key, value, *((None, *rest) if len(rest) == 2 else rest))
    ctx.delta = len(rest) == 3


def _matrix_backward(ctx: Any, grad: Tensor, grad_last: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    found = torch.ops.itnet.matrix_scan_backward(grad, grad_last, *saved)
    slopes = [None if operand is None else slope for operand, slope in zip(saved, found, strict=True)]
    return tuple(slopes if ctx.delta else [*slopes[:3], *slopes[4:]])


# -- Registration ------------------------------------------------------------------------------------------------


register(LIBRARY, "linear_scan", _linear_scan, _linear_shapes, _linear_backward, _linear_context)
register(LIBRARY, "selective_scan", _selective_scan, _selective_shapes, _selective_backward, _selective_context)
register(LIBRARY, "matrix_scan", _matrix_scan, _matrix_shapes, _matrix_backward, _matrix_context)
register(LIBRARY, "delta_scan", _delta_scan, _delta_shapes, _matrix_backward, _matrix_context)
register(
    LIBRARY,
    "selective_scan_backward",
    _selective_gradients,
    _selective_gradient_shapes,
    _once("selective_scan"),
    keep_nothing,
)
register(
    LIBRARY, "matrix_scan_backward", _matrix_gradients, _matrix_gradient_shapes, _once("matrix_scan"), keep_nothing
)
