"""Conformance cases of the ``dense`` family."""

from __future__ import annotations

from typing import Any

from .dense import Dense
from .domain import Grid
from .kernel import Draw, Sample, Spec

__all__ = ["samples"]


def _sample(kernel: Dense, grid: int, shape: tuple[int, ...], size: list[int] | None = None) -> Sample:
    draws = {"input": Draw(shape)} | ({"output_size": size} if size is not None else {})
    return Sample(Spec(kernel, Grid(grid), "sample", tuple(draws)), draws)


def samples() -> list[Sample]:
    """Every structural variant, with the odd sizes 0 (batch), 1, 7 and 63."""
    return [*_adaptive(), *_interpolations(), *_uniform()]


def _adaptive() -> list[Sample]:
    def cases(**options: Any) -> list[Sample]:
        return [
            _sample(Dense("adaptive", (7,), **options), 1, (2, 3, 63)),
            _sample(Dense("adaptive", (7,), **options), 1, (3, 5)),  # grows, no batch axis
            _sample(Dense("adaptive", (1, 1), **options), 2, (2, 3, 5, 7)),
            _sample(Dense("adaptive", (3, 4), **options), 2, (2, 1, 7, 63)),
            _sample(Dense("adaptive", (3, 4), **options), 2, (0, 3, 7, 5)),
            _sample(Dense("adaptive", **options), 2, (2, 3, 7, 5), [6, 1]),
            _sample(Dense("adaptive", (2, 3, 4), **options), 3, (2, 3, 5, 4, 1)),
        ]

    return [*cases(), *cases(maximum=True, returns_indices=True), *cases(maximum=True)[:1]]


def _interpolations() -> list[Sample]:
    found = []
    for name in ("nearest", "nearest-exact", "linear"):
        found += [
            _sample(Dense(name, (7,)), 1, (2, 3, 63)),
            _sample(Dense(name, scales=(2.5,)), 1, (2, 3, 7)),
            _sample(Dense(name), 1, (2, 1, 1), [7]),
            _sample(Dense(name, scales=(2.0, 0.7)), 2, (2, 3, 4, 7)),
            _sample(Dense(name), 2, (2, 3, 5, 7), [8, 3]),
            _sample(Dense(name, (2, 3, 5)), 3, (2, 3, 4, 3, 2)),
            _sample(Dense(name, scales=(2.0, 1.5, 0.5)), 3, (2, 3, 1, 2, 7)),
        ]
    for aligned in (False, True):
        found += [
            _sample(Dense("linear", (5,), align_corners=aligned), 1, (2, 3, 7)),
            _sample(Dense("linear", (1, 3, 5), align_corners=aligned), 3, (2, 3, 4, 3, 2)),
        ]
        for name in ("linear", "cubic"):
            found += [
                _sample(Dense(name, (9, 3), align_corners=aligned), 2, (2, 3, 4, 7)),
                _sample(Dense(name, scales=(2.3, 0.6), align_corners=aligned), 2, (1, 3, 1, 63)),
                _sample(Dense(name, (9, 3), align_corners=aligned, antialias=True), 2, (2, 3, 4, 7)),
                _sample(Dense(name, scales=(0.3, 0.6), align_corners=aligned, antialias=True), 2, (2, 3, 7, 63)),
            ]
    found += [_sample(Dense(name, (9, 3)), 2, (0, 3, 4, 7)) for name in ("cubic", "nearest")]
    return found


def _uniform() -> list[Sample]:
    found = []
    reductions: tuple[dict[str, Any], ...] = ({"mean": True}, {}, {"maximum": True})
    for options in reductions:
        found += [
            _sample(Dense("uniform", axes=(2, 3), **options), 2, (2, 3, 7, 63)),
            _sample(Dense("uniform", axes=(-1, -2), keepdim=True, **options), 2, (2, 3, 5, 7)),
            _sample(Dense("uniform", axes=(1, 2), **options), 2, (0, 1, 7, 3)),
            _sample(Dense("uniform", axes=(1,), keepdim=True, **options), 1, (2, 63, 3)),
        ]
    places: dict[str, Any] = {"maximum": True, "returns_indices": True}
    found += [
        _sample(Dense("uniform", axes=(1,), **places), 1, (2, 7, 3)),
        _sample(Dense("uniform", axes=(-1,), keepdim=True, **places), 1, (0, 3, 63)),
    ]
    return found
