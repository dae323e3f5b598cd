"""The first capture of a model: whole if that is possible, else in parts, during one run that leaves no trace."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

from ..capture.throwaway import StateWritten
from ..errors import ItnetError
from ..progress import Progress
from ..settings import SUMMARY, debug
from .assembly import graphs, programs
from .program import Program
from .trial import copied, run_trial, unrecorded, untouched

__all__ = ["begin"]


def begin(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Capture a first variant of ``program``, or of the largest submodules that can be captured.

    Raises:
        Exception: whatever the model itself raises on these arguments.
    """
    with Progress.current():
        if _whole(program, args, kwargs):
            return
        if any(tensor.is_meta for tensor in program.root.parameters()):
            program.note("the model is on the meta device, where only what can be captured whole is captured")
            return
        try:
            _in_parts(program, args, kwargs)
        except Exception as error:
            _run(program, program.plain, args, kwargs)  # the caller's mistake, if it fails too
            _give_up(program, f"the parts could not be run together: {type(error).__name__}: {error}")


def _whole(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Capture the model whole; False, with the reason noted, where that fails."""
    if program.path in program.policy.opened:
        return False
    try:
        call = program.reader.read(args, kwargs)
    except TypeError as error:
        program.note(f"calls with other arguments than tensors in plain containers run the original code: {error}")
        return False
    if program.has(call):
        return not any(variant.refused for variant in program.variants)
    try:
        return not program.add(call).refused
    except StateWritten:
        # Caches of positions and the like are written in the first call only.
        with untouched(program.root):
            _run(program, program.plain, args, kwargs, keep=True)
            try:
                return not program.add(call).refused
            except ItnetError as error:
                failure = error
    except ItnetError as error:
        failure = error
    program.fail(call, failure)
    return False


def _run(program: Program, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep: bool = False) -> None:
    """One run on copies of the arguments that leaves no trace, unless attributes are to be kept."""
    own, _, _ = copied((args, kwargs))
    with unrecorded(), contextlib.nullcontext() if keep else untouched(program.root):
        function(*own[0], **own[1])


def _in_parts(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with _cycles_collected():
        _run(program, program, args, kwargs)
    if not program.verified or not graphs(program):
        return
    trial = run_trial(program.root, program.plain, program, args, kwargs, gradients=True)
    program.comparison_of_parts = trial.describe()
    if not trial.equal:
        _give_up(program, f"together the parts give a result that {trial.describe()}")


@contextlib.contextmanager
def _cycles_collected() -> Iterator[None]:
    """Collect what the block leaves behind: failed captures make cycles, some of torch's own, that hold activations.

    What was there before is set aside meanwhile, for a search of everything takes seconds in a large process. A
    process that has itself set objects aside keeps them there.
    """
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
        gc.collect()
    finally:
        if ours:
            gc.unfreeze()


def _give_up(program: Program, why: str) -> None:
    """Leave everything as it was."""
    debug(SUMMARY, "%s", why)
    for inner in list(programs(program))[1:]:
        inner.face.restore(inner.root)
    program.policy.divide = False
    program.note(why)
