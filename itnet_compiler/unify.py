"""``unify``: from a model to the same model with every mixing block as an integral."""

from __future__ import annotations

import copy as copying
from typing import Any

import torch
from torch import nn

from .capture.clone import shallow_clone
from .capture.examples import Example, infer_example, normalise_example, refuse_unsuitable
from .errors import CaptureError, InputError
from .lowering.planner import PlanRule
from .progress import Progress
from .unified import Unified, make_unified, program_of

__all__ = ["lower", "unify"]


def unify(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    dynamic: bool = True,
    verify: bool = True,
    copy: bool = False,
) -> Any:
    """Rewrite every convolution, pooling, attention and recurrent operator of ``model`` into one integral node.

    The result is a shallow clone of ``model``: same classes (mixed with ``Unified``), the very same parameters and
    buffers, same ``state_dict``, same signature. It computes the same function. ``model`` itself is not changed.

    Args:
        model: A network in the mode (train or eval) to capture first; the other is captured when first called.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments, as ``model`` is
            called. Inferred where the model says what it takes (transformers, timm, Lightning).
        example_kwargs: Further keyword arguments.
        dynamic: Keep batch size, lengths and image sizes symbolic wherever the model allows it. With False every
            new size is captured anew.
        verify: Check each rewrite in float64 and the result against the original; the report shows the errors.
        copy: Give the result its own parameters and buffers.

    Returns:
        The unified model. Its ``report()``, ``integrals``, ``ir``, ``graph`` and ``explain(path)`` show what was made.

    Raises:
        ModelError: if ``model`` is no module, or one that cannot be unified as it is (compiled, scripted, quantised).
        InputError: if example inputs are missing or the model itself does not accept them.
        CaptureError: if ``torch.export`` cannot capture the model whole.
    """
    refuse_unsuitable(model)
    if isinstance(model, Unified):
        unified: Any = copying.deepcopy(model) if copy else model
    else:
        source = copying.deepcopy(model) if copy else model
        unified = make_unified(shallow_clone(source), dynamic=dynamic, verify=verify)
    example = normalise_example(example_inputs, example_kwargs)
    if example is None:
        if isinstance(model, Unified) and program_of(unified).variants:
            return unified
        example = infer_example(model)
    _capture_example(unified, example)
    return unified


def _capture_example(unified: nn.Module, example: Example) -> None:
    """Capture the first variant; an example that the model itself refuses is the caller's mistake, not ours."""
    program = program_of(unified)
    try:
        call = program.read(*example.args, **example.kwargs)
    except TypeError as error:
        raise InputError(
            f"the example inputs do not fit: {error}", remedy="pass arguments as forward takes them"
        ) from error
    if program.has(call):
        return
    try:
        program.add(call, Progress())
    except CaptureError as failure:
        problem = _own_failure(unified, example)
        if problem is None:
            raise
        raise InputError(
            f"the model itself does not run on the example inputs: {problem}",
            remedy="pass inputs as in model(*example_inputs, **example_kwargs)",
        ) from failure


def _own_failure(unified: nn.Module, example: Example) -> str | None:
    program = program_of(unified)
    if any(tensor.is_meta for tensor in unified.parameters()):
        return None
    try:
        with torch.no_grad():
            program.original(unified, *example.args, **example.kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return None


def lower(unified: Any, example_inputs: Any = None, *, method: str = "library", only: str = "*") -> Any:
    """Choose how integrals are run, in place.

    Args:
        unified: A unified model.
        example_inputs: Not needed by the methods there are now; a call that is not captured yet is captured.
        method: ``library`` (the exact library kernel) or ``reference`` (the dense definition; slow).
        only: Glob over names of integrals.

    Returns:
        ``unified``; ``unified.reset()`` undoes it.

    Raises:
        LoweringError: if there is no such method, no integral matches, or one does not support it (with every reason).
    """
    program = program_of(unified)
    example = normalise_example(example_inputs, None)
    if example is not None:
        _capture_example(unified, example)
    program.plan(PlanRule(only, method))
    return unified
