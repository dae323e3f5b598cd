"""Family ``semiseparable``: the recurrence of a matrix, in whatever layouts a loop keeps its operands."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Past
from .kernel import Draw, Operands, Sample, Spec, Work
from .layout import Layout, label_sizes, labels_of, merged, parse, spread
from .matrix_state import MatrixState
from .memory import Memory
from .semiseparable import moved_bytes
from .steps import Labels

__all__ = ["ArrangedState"]

TIME = "t"


@dataclass(frozen=True)
class ArrangedState(Memory):
    """``MatrixState`` of operands whose axes hold labels (see ``layout``), with ``t`` for time:

        S[t, b, c, e] = decay[t, b, c]·S[t−1, b, c, e] + scale·rate[t, b]·k[t, b, c]·v[t, b, e]
        y[t, b, e] = Σ_c q[t, b, c]·S[t, b, c, e]

    The channels c are the labels of ``query`` and ``key`` that the output lacks, the features e those of ``value``
    alone, and b all others. Query, key and value have the time; a decay or rate without it is that of every step, and
    any operand may lack some b. ``initial`` is S[−1]. Returns y, or y and the last state.

    Attributes:
        query: Layout of the operand.
        key: Layout of the operand.
        value: Layout of the operand.
        output: Layout of y.
        rate: Layout of the operand, None where there is none; without channels and features.
        factor: Layout of the operand ``decay``, likewise; without features.
        constant: The decay where it is one number, known, which half precision does not round; None where it is an
            operand, or 1.
        initial: Layout of the operand, likewise; without time.
        last: Layout in which the last state is returned, None where it is not.
        scale: A number.
        sizes: Extents of labels that are fixed.
    """

    family: ClassVar[str] = "semiseparable"
    value_map: ClassVar[str] = "value"

    query: str
    key: str
    value: str
    output: str
    rate: str | None = None
    factor: str | None = None
    constant: float | None = None
    initial: str | None = None
    last: str | None = None
    scale: float = 1.0
    sizes: tuple[tuple[str, int], ...] = ()

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Layout of every operand by role."""
        texts = {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "rate": self.rate,
            "decay": self.factor,
            "initial": self.initial,
        }
        return {role: parse(text) for role, text in texts.items() if text is not None}

    @cached_property
    def labels(self) -> Labels:
        """Labels by what they count; ``queries`` and ``keys`` are the time."""
        query, key, value, rate = (labels_of(self.layouts.get(role, ())) for role in ("query", "key", "value", "rate"))
        output = labels_of(parse(self.output))
        channels = tuple(label for label in query if label in key and label not in output)
        features = tuple(label for label in output if label in value and label not in (*query, *key, *rate))
        batch = tuple(label for label in output if label not in (TIME, *features))
        return Labels(batch, (TIME,), (TIME,), channels, features)

    @property
    def time_axis(self) -> int:  # type: ignore[override]
        """Axis of y that holds time."""
        return next(place for place, axis in enumerate(parse(self.output)) if TIME in axis)

    @cached_property
    def targets(self) -> dict[str, Layout]:
        """Layout of every operand as ``state()`` takes it."""
        labels = self.labels
        batch: Layout = tuple((label,) for label in labels.batch)
        diagonal = bool(set(labels_of(self.layouts.get("decay", ()))) & set(labels.channels))
        inner: dict[str, Layout] = {
            "query": ((TIME,), labels.channels),
            "key": ((TIME,), labels.channels),
            "value": ((TIME,), labels.features),
            "rate": ((TIME,), ()),
            "decay": ((TIME,), labels.channels if diagonal else ()),
            "initial": (labels.channels, labels.features),
        }
        return {role: (*batch, *inner[role]) for role in self.layouts}

    def filled(self, role: str) -> tuple[int, ...]:
        """Axes of a target which an operand has to be repeated along, since it lacks all of their labels."""
        target, own = self.targets[role], set(labels_of(self.layouts[role]))
        rank = len(target)
        matters = {"decay": (rank - 2,), "initial": (rank - 2, rank - 1)}.get(role, ())
        return tuple(place for place in matters if target[place] and not own & set(target[place]))

    def state(self) -> MatrixState:
        """The recurrence itself."""
        if self.factor is None:
            return MatrixState("none" if self.constant is None else "scalar")
        return MatrixState("diagonal" if self.targets["decay"][-1] else "scalar")

    def extents(self, operands: Operands) -> dict[str, int]:
        """Extent of every label."""
        return label_sizes(self.layouts, {role: operands[role] for role in self.layouts}, dict(self.sizes))

    def prepared(self, **operands: Any) -> dict[str, Tensor]:
        """Operands of ``state()``, […, T, ·]."""
        sizes = self.extents(operands)
        found = {
            role: spread(operands[role], self.layouts[role], target, sizes, self.filled(role))
            for role, target in self.targets.items()
        }
        if "rate" in found:
            found["value"] = found["value"] * found.pop("rate")
        if self.scale != 1.0:
            found["value"] = found["value"] * self.scale
        if self.constant is not None:
            wide = torch.promote_types(found["query"].dtype, torch.float32)
            found["decay"] = found["query"].new_full((sizes[TIME], 1), self.constant, dtype=wide)
        return found

    def finished(self, y: Tensor, last: Tensor, **operands: Any) -> Any:
        """y, and the last state where it is asked for, in their layouts."""
        sizes, labels = self.extents(operands), self.labels
        y, last = y.to(operands["query"].dtype), last.to(operands["query"].dtype)
        shape = [sizes[label] for label in (*labels.batch, TIME, *labels.features)]
        result = merged(y.reshape(shape), (*labels.batch, TIME, *labels.features), parse(self.output), sizes)
        if self.last is None:
            return result
        order = (*labels.batch, *labels.channels, *labels.features)
        return result, merged(last.reshape([sizes[label] for label in order]), order, parse(self.last), sizes)

    def describe(self) -> str:
        """``semiseparable`` with the layouts."""
        roles = {"query": "q", "key": "k", "value": "v", "rate": "rate", "decay": "decay", "initial": "initial"}
        texts = {"query": self.query, "key": self.key, "value": self.value, "rate": self.rate}
        texts |= {"decay": self.factor, "initial": self.initial}
        shown = " ".join(f"{name}[{texts[role]}]" for role, name in roles.items() if texts[role] is not None)
        scale = f"scale={self.scale:.6g}, " if self.scale != 1.0 else ""
        scale += f"decay={self.constant:.6g}, " if self.constant is not None else ""
        last = f", last [{self.last}]" if self.last is not None else ""
        return f"{self.family}({scale}matrix state, {shown} -> [{self.output}]{last})"

    def formula(self) -> list[str]:
        """In the labels of the node."""

        def of(symbol: str, role: str) -> str:
            own = labels_of(self.layouts[role])
            return f"{symbol}[{', '.join(own)}]" if own else symbol

        labels = self.labels
        rest = ", ".join((*labels.batch, *labels.channels, *labels.features))
        kept = f"{of('decay', 'decay')}·" if self.factor is not None else ""
        kept = f"{self.constant:.6g}·" if self.constant is not None else kept
        scale = f"{self.scale:.6g}·" if self.scale != 1.0 else ""
        rate = f"{of('rate', 'rate')}·" if self.rate is not None else ""
        began = of("initial", "initial") if self.initial is not None else "0"
        given = f"{scale}{rate}{of('k', 'key')}·{of('v', 'value')}"
        return [
            f"S[-1, {rest}] = {began}",
            f"S[t, {rest}] = {kept}S[t-1, {rest}] + {given}",
            f"y[{', '.join(labels_of(parse(self.output)))}] = Σ_{' '.join(labels.channels)} "
            f"{of('q', 'query')}·S[t, {rest}]",
        ]

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_s K(t, s) v_s in the layout of the output."""
        value = self.prepared(**operands)["value"]
        summed = replace(self, last=None).finished(matrix @ value, value, **operands)
        assert isinstance(summed, Tensor)
        return summed

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """Small extents by label."""
        labels = self.labels
        found = dict.fromkeys((TIME, *labels.channels, *labels.features, *labels.batch))
        small = dict(zip(found, (5, 4, 3, 2, 7, 6, 2, 2, 2, 2, 2, 2), strict=False))
        return replace(self, sizes=tuple((label, small[label]) for label, _ in self.sizes))._sample(small)

    def _sample(self, sizes: dict[str, int]) -> Sample:
        draws = {
            role: Draw(
                tuple(math.prod(sizes[label] for label in axis) for axis in layout),
                "fraction" if role == "decay" else "float",
            )
            for role, layout in self.layouts.items()
        }
        return Sample(Spec(self, Past(), "linear attention", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """As of ``MatrixState``."""
        sizes, labels = self.extents(operands), self.labels
        entries = math.prod(sizes[label] for label in (*labels.batch, TIME, *labels.channels, *labels.features))
        each = 4 + (self.state().decay != "none")
        return Work(each * entries, moved_bytes(operands, outputs))

    @classmethod
    def samples(cls) -> list[Sample]:
        plain = cls("t b h c", "t b h c", "t b h e", "t b h e")
        heads = cls("b t (h c)", "b t (h c)", "b t (h e)", "b t (h e)", last="b h c e", sizes=(("h", 3),))
        sizes = {"t": 7, "b": 2, "h": 3, "c": 4, "e": 5}
        return [
            replace(kernel, sizes=tuple((label, extents[label]) for label, _ in kernel.sizes))._sample(extents)
            for kernel, extents in [
                (plain, sizes),
                (plain, sizes | {"t": 63, "c": 1}),
                (replace(plain, last="b h e c", scale=0.5), sizes | {"e": 1}),
                (replace(plain, factor="", last="b h c e"), sizes),
                (replace(plain, constant=0.9, initial="b h c e", rate=""), sizes),
                (replace(plain, factor="t b h 1 1", initial="b h c e"), sizes),
                (replace(plain, factor="t 1 h c 1", rate="t b 1", initial="h 1 e"), sizes),
                (replace(plain, factor="h c", initial="c 1", last="b h c e"), sizes | {"t": 1}),
                (heads, sizes),
                (replace(heads, factor="b t h", rate="b t h", initial="b (h c) e"), sizes),
                (cls("t b (c d)", "t b c d", "t b e", "t b e", factor="t b d", sizes=(("d", 2),)), sizes | {"d": 2}),
                (cls("t c", "t c", "t b e", "t b e"), sizes | {"t": 0}),
                (cls("t b c", "t b c", "t b e", "t b e", last="b c e"), sizes | {"b": 0}),
            ]
        ]
