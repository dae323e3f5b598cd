"""Conformance cases of ``Stencil``."""

from __future__ import annotations

from typing import Any

from .domain import Window
from .kernel import Sample
from .stencil import Stencil, Tap

__all__ = ["samples"]


def _window(*axes: tuple[int, int, int], **options: Any) -> Window:
    """(size, low, high) by axis."""
    size, padding = tuple(each[0] for each in axes), tuple(each[1:] for each in axes)
    dilation = options.pop("dilation", (1,) * len(axes))
    return Window(size, (1,) * len(axes), padding, dilation, **options)


def samples() -> list[Sample]:
    """Every structure: differences, weights, channels of their own, around the end, over two axes, sizes 0 to 63."""
    minus, mix = ((-1.0, ()),), ("mu", (-1,), 1)
    difference = Stencil(3, (-2,), (Tap((1,)), Tap((0,), minus)))
    mixed = Stencil(3, (-2,), (Tap((0,), ((1.0, ()), (-1.0, ("mu",)))), Tap((-1,), ((1.0, ("mu",)),))), (mix,))
    around_it = (Tap(offset) for offset in ((0, 1), (1, 0), (0, -1), (-1, 0)))
    cross = (*around_it, Tap((0, 0), ((-4.0, ()),)))
    corner = (Tap((0, 0)), Tap((2, 1), minus), Tap((1, 0), ((0.5, ()),)))
    parts = (Tap((1,), channels=(0, 2)), Tap((-1,), channels=(2, 4)), Tap((0,), channels=(4, 7)))
    moved = Stencil(4, (-3,), parts, channel_axis=-1, channels=7)
    around = Stencil(3, (-1,), (Tap((2,)), Tap((-2,), minus)))
    return [
        difference._sample(_window((2, 0, 0)), [2, 7, 3]),
        difference._sample(_window((2, 0, 1)), [0, 7, 3]),
        mixed._sample(_window((2, 1, 0)), [1, 3, 63]),
        Stencil(4, (-2, -1), cross)._sample(_window((3, 1, 1), (3, 1, 1), boundary="circular"), [1, 3, 5, 7]),
        Stencil(4, (-2, -1), corner)._sample(_window((3, 0, 0), (2, 0, 1)), [1, 3, 5, 7]),
        moved._sample(_window((3, 1, 1)), [2, 7, 5, 7]),
        around._sample(_window((2, 2, 2), dilation=(4,), boundary="circular"), [2, 3, 9]),
    ]
