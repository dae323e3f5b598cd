"""Rule ``matrix_lstm``: the mLSTM that transformers' xLSTM runs without kernels: in chunks, by steps, or both."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...ir.domain import Past
from ...ir.kernel import Spec
from ...ir.matrix_lstm import MatrixLSTM
from ..known import KnownFunction
from ..match import Match, Proposal, present, propose, rule

__all__ = ["KNOWN", "matrix_lstm"]

_TENSORS = ("query", "key", "value", "igate", "fgate", "c_initial", "n_initial", "m_initial")


def _settings(mode: str, chunk: int, epsilon: float, state: str) -> SimpleNamespace:
    """As much of a configuration as the module reads."""
    return SimpleNamespace(
        mode=mode,
        chunk_size=chunk,
        eps=epsilon,
        inference_state_dtype=state,
        autocast_kernel_dtype="float32",
        return_last_states=True,
    )


def _arguments(given: dict[str, Any]) -> tuple[Any, ...] | None:
    if not {"self", "return_last_states", "mode", *_TENSORS} <= set(given):
        return None
    module, config = given["self"], given["self"].config
    tensors = [given[name] for name in _TENSORS]
    ranks = (4, 4, 4, 3, 3, 4, 3, 3)
    if any(one is not None and one.dim() != rank for one, rank in zip(tensors, ranks, strict=True)):
        return None
    if len({one.dtype for one in tensors[:5]}) > 1:
        return None
    if config.mode not in ("inference", "train") or given["mode"] not in (None, config.mode):
        return None
    options = (config.mode, config.chunk_size, float(config.eps), config.inference_state_dtype)
    made = type(module)(_settings(*options))
    if any(_parts(getattr(module, name)) != _parts(getattr(made, name)) for name in ("_inference_fn", "_train_fn")):
        return None  # other functions were put there, or the configuration has changed since
    return (*tensors, *options)


def _parts(function: Any) -> Any:
    """What a partial function calls with which options, to be compared."""
    if isinstance(function, partial):
        options = {name: _parts(value) for name, value in function.keywords.items()}
        return function.func, function.args, {**options, "autocast_kernel_dtype": None}  # which nothing here reads
    return function


def _returns(given: dict[str, Any]) -> bool:
    """Whether the module returns the last states too."""
    config, asked = given["self"].config, given["return_last_states"]
    if config.mode == "inference":
        return True
    return bool(config.return_last_states if asked is None else asked)


def _call(function: Any, *given: Any) -> Any:
    *tensors, mode, chunk, epsilon, state = given
    module = function.__globals__["xLSTMBackend"](_settings(mode, chunk, epsilon, state))
    y, states = function(module, *tensors)
    return (y, *(one.to(_wide(y)) for one in states))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _shapes(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *_, mode, chunk, _, _ = others
    torch._check_value(k.shape[2] > 0, lambda: "an empty sequence")
    if mode == "train":
        torch._check_value(k.shape[2] % chunk == 0, lambda: f"a sequence that is no multiple of {chunk}")
    batch, heads, _, keys = k.shape
    states = (batch, heads, keys, v.shape[-1]), (batch, heads, keys), (batch, heads, 1)
    return (v.new_empty(v.shape), *(v.new_empty(shape, dtype=_wide(v)) for shape in states))


def _result(results: Any, given: dict[str, Any]) -> Any:
    y, *states = results
    if not _returns(given):
        return y
    # Where the last steps go one by one, the states are of the type that is configured for them.
    config, time = given["self"].config, given["key"].shape[2]
    dtype = getattr(torch, config.inference_state_dtype)
    if dtype != y.dtype and (config.mode == "train" or (time > 1 and time % config.chunk_size == 0)):
        dtype = y.dtype
    return y, tuple(one.to(dtype) for one in states)


KNOWN = KnownFunction(
    "matrix_lstm",
    package="transformers.models.",
    functions=("xLSTMBackend.forward",),
    schema=(
        "(Tensor query, Tensor key, Tensor value, Tensor input_gate, Tensor forget_gate, Tensor? initial,"
        " Tensor? normaliser, Tensor? maximum, str mode, int chunk, float epsilon, str state)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    arguments=_arguments,
    call=_call,
    shapes=_shapes,
    result=_result,
)


@rule("matrix_lstm", "itnet_leaf.matrix_lstm")
def matrix_lstm(node: Node, match: Match) -> Proposal:
    """A memory with exponential gates; chunks are the source's affair."""
    operands = KNOWN.bind(node)
    _, _, epsilon, _ = (operands.pop(name) for name in ("mode", "chunk", "epsilon", "state"))
    kernel = MatrixLSTM(match.literal(epsilon, "epsilon"))
    return propose(Spec(kernel, Past(), "mlstm", present(operands)), operands, node)
