"""Model types of transformers that are parts of others, such as ``clip_text_model`` of ``clip``, or the same as others.

A part that ran inside a network that was unified needs no run of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from torch import nn

from benchmarks.zoo import from_transformers
from tests.foreign.registry import prepare

__all__ = ["running", "state", "twins", "wholes"]

Record = dict[str, Any]


@cache
def twins() -> dict[str, str]:
    """Types whose configuration class says that it is another type: that type."""
    return {name: kind.model_type for name, kind in _configurations().items() if kind.model_type != name}


@cache
def wholes() -> dict[str, tuple[str, ...]]:
    """Types that are part of others of the same package of transformers: of which, those that hold these too."""
    kinds = {name: kind for name, kind in _configurations().items() if name not in twins()}
    directly: dict[str, set[str]] = {}
    for name, kind in kinds.items():
        for inner in kind.sub_configs.values():
            part = getattr(inner, "model_type", "")
            if part != name and kinds.get(part) is inner and _package(inner) == _package(kind):
                directly.setdefault(part, set()).add(name)
    return {part: tuple(sorted(_reached(part, directly))) for part in directly}


def state(name: str, records: Mapping[str, Record], suffix: str = "") -> str:
    """Whether a type need be run on its own, given the records so far.

    Args:
        name: Model type.
        records: By name, ``transformers/clip``.
        suffix: Of records of another form of the same networks.

    Returns:
        ``part`` of one that ran, or ``twin`` of one; ``wait`` where it may turn out so; ``alone``.
    """
    if name in twins():
        return "twin"
    found = {whole: records.get(f"transformers/{whole}{suffix}") for whole in wholes().get(name, ())}
    if any(one and one["status"] == "unified" and name in one.get("kinds", ()) for one in found.values()):
        return "part"
    return "wait" if any(one is None and whole not in wholes() for whole, one in found.items()) else "alone"


@contextlib.contextmanager
def running(model: nn.Module) -> Iterator[set[str]]:
    """Collects the types whose configuration a module has that is called."""
    found: set[str] = set()
    hooks = []
    for module in model.modules():
        kind = getattr(type(getattr(module, "config", None)), "model_type", "")
        if isinstance(kind, str) and kind:
            hooks.append(module.register_forward_pre_hook(lambda module, args, kind=kind: found.add(kind)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@cache
def _configurations() -> dict[str, Any]:
    prepare("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return {name: CONFIG_MAPPING[name] for name in from_transformers.names()}


def _package(kind: type) -> str:
    return kind.__module__.rpartition(".")[0]


def _reached(part: str, directly: Mapping[str, set[str]]) -> set[str]:
    found, ahead = set[str](), [part]
    while ahead:
        new = directly.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found - {part}
