"""``unify``: from a model to the same model with every mixing block as an integral."""

from __future__ import annotations

from typing import Any

from torch import nn

from .capture.clone import deep_clone, shallow_clone
from .capture.examples import Example, infer_example, is_lazy, normalise_example, refuse_unsuitable
from .errors import InputError
from .lowering.base import find_lowering
from .lowering.planner import PlanRule
from .runtime.assembly import plan, programs
from .runtime.begin import begin
from .runtime.boundary import Boundaries, resolve
from .unified import Unified, as_original, make_unified, program_of

__all__ = ["lower", "unify"]


def unify(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    dynamic: bool = True,
    verify: bool = True,
    copy: bool = False,
    boundaries: Boundaries = None,
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
        copy: Give the result its own parameters and buffers; a cache of computed tensors is copied without its graph.
        boundaries: What becomes one graph each. By default the model as a whole and, where ``torch.export`` cannot
            take that, the largest of its submodules that it can, with Python code between them. ``"root"``: the
            whole or nothing. ``"blocks"``: each repeated block, for wrapping them (FSDP, checkpointing). Else globs
            over module paths and module classes: ``["encoder.layer.*", MyBlock]``.

    Returns:
        The unified model. Its ``report()``, ``integrals``, ``ir``, ``graph``, ``parts`` and ``explain(path)`` show
        what was made. Where nothing can be captured it runs as before, and the report says why.

    Raises:
        ModelError: if ``model`` is no module, or one that cannot be unified as it is (compiled, scripted, quantised).
        InputError: if example inputs are missing or the model itself does not run on them, or no module fits
            ``boundaries``.
    """
    refuse_unsuitable(model)
    example = normalise_example(example_inputs, example_kwargs)
    if isinstance(model, Unified):
        if boundaries is not None:
            raise InputError(
                "the model is unified already, with boundaries of its own", remedy="give boundaries= to the first unify"
            )
        unified: Any = deep_clone(model) if copy else model
        if example is None and any(program.variants for program in programs(program_of(unified))):
            return unified
    else:
        example = example or infer_example(model)
        unified = as_original(shallow_clone(deep_clone(model) if copy else model))
        chosen, policy = resolve(unified, boundaries)
        policy.dynamic, policy.verify = dynamic, verify
        for path in chosen:
            make_unified(unified.get_submodule(path), policy, path)
        make_unified(unified, policy)
    _capture_example(unified, example or infer_example(model))
    return unified


def _capture_example(unified: nn.Module, example: Example) -> None:
    """Capture at an example; one that the model itself refuses is the caller's mistake, not ours."""
    if is_lazy(unified):
        # Its first call decides on shapes and draws values; that is the user's to make.
        program_of(unified).note("lazy modules have no shape before the first call; the second one is captured")
        return
    try:
        begin(program_of(unified), example.args, example.kwargs)
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise InputError(
            f"the model itself does not run on the example inputs: {type(error).__name__}: {text}",
            remedy="pass inputs as in model(*example_inputs, **example_kwargs)",
        ) from error


def lower(
    unified: Any,
    example_inputs: Any = None,
    *,
    method: str = "library",
    only: str = "*",
    tolerance: float | None = None,
) -> Any:
    """Choose how integrals are run, in place.

    Args:
        unified: A unified model.
        example_inputs: Not needed by the methods there are now; a call that is not captured yet is captured.
        method: ``library`` (the exact library kernel), ``reference`` (the dense definition; slow), ``tiled`` (kernels
            that are functions of a pair, without storing all pairs), ``products`` (attention that was written out,
            as it was written); for linear recurrences ``scan``, ``chunked``
            (matrix products within chunks) or ``fft`` (where the decay is constant); for loops, LSTM cells among them
            that were called or written out as loops, ``fused`` (one operator in machine code); for these and recurrent
            layers ``newton`` (all steps at once, by iteration; for GPUs).
        only: Glob over names of integrals.
        tolerance: With ``newton``: how far each state may be from the step after the one before it, in units of the
            largest number that its row holds there; 32 times the rounding error of the dtype unless given. Where the
            iteration does not come as near, the steps are run one by one.

    Returns:
        ``unified``; ``unified.reset()`` undoes it.

    Raises:
        LoweringError: if there is no such method, no integral matches, one does not support it (with every reason),
            or it takes no tolerance.
    """
    program = program_of(unified)
    if tolerance is not None:
        find_lowering(method).within(tolerance)
    example = normalise_example(example_inputs, None)
    if example is not None:
        _capture_example(unified, example)
    plan(program, PlanRule(only, method, tolerance=tolerance))
    return unified
