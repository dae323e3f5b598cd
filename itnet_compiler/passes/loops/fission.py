"""Loop fission: what of a body can be computed for all steps at once, before or after its recurrent core."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...ir.body import Body, Ref, refs_of
from .batching import Types, batched, counts_steps

__all__ = ["Fission", "split"]


@dataclass(frozen=True)
class Fission:
    """The calls of a body by when they are made: for all steps before the core, in its steps, or for all after it.

    ``shifted`` are the carried values that are only something made before the core, one step late.
    """

    before: frozenset[int]
    core: tuple[int, ...]
    after: frozenset[int]
    shifted: frozenset[int]


def split(body: Body, types: Types, steps: int) -> Fission:
    """Put as much as can be outside the core. A call that no rule can batch stays in it."""
    before, shifted = _before(body, types, steps)
    after = _after(body, types, steps, before, shifted)
    core = tuple(index for index in range(len(body.calls)) if index not in before and index not in after)
    return Fission(frozenset(before), core, frozenset(after), frozenset(shifted))


def _before(body: Body, types: Types, steps: int) -> tuple[set[int], set[int]]:
    """Calls that depend on nothing carried, and the carried values that are such a call's, one step late."""
    found: set[int] = set()
    shifted: set[int] = set()

    def timed(ref: Ref) -> bool:
        known = {"step": True, "shared": False, "carry": ref.index in shifted, "local": ref.index in found}
        return known[ref.kind]

    grows = True
    while grows:
        for index, call in enumerate(body.calls):
            refs = list(refs_of(call))
            known = all(timed(ref) or ref.kind == "shared" for ref in refs)
            varies = any(map(timed, refs)) or counts_steps(call)
            if known and varies and batched(call, types, timed, steps) is not None:
                found.add(index)
        more = {index for index, ref in enumerate(body.carried) if timed(ref)} - shifted
        shifted |= more
        grows = bool(more)
    return found, shifted


def _after(body: Body, types: Types, steps: int, before: set[int], shifted: set[int]) -> set[int]:
    """Calls that nothing carried depends on, all of whose users are such calls too."""
    users: dict[int, set[int]] = {}
    for index, call in enumerate(body.calls):
        for ref in refs_of(call):
            if ref.kind == "local":
                users.setdefault(ref.index, set()).add(index)
    carried = {ref.index for place, ref in enumerate(body.carried) if ref.kind == "local" and place not in shifted}
    found: set[int] = set()

    def timed(ref: Ref) -> bool:
        return ref.kind != "shared"

    for index in reversed(range(len(body.calls))):
        if index in before or index in carried or not users.get(index, set()) <= found:
            continue
        call = body.calls[index]
        if any(map(timed, refs_of(call))) and batched(call, types, timed, steps) is not None:
            found.add(index)
    # Several results at once cannot be kept of every step: one of them is taken in the step.
    for index in sorted(found):
        inner = (ref for ref in refs_of(body.calls[index]) if ref.kind == "local" and ref.index not in found | before)
        if any(not isinstance(types(ref), Tensor) for ref in inner):
            found.remove(index)
    return found
