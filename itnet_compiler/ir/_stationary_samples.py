"""Conformance cases of the ``stationary`` family."""

from __future__ import annotations

from typing import Any

from .domain import Window
from .kernel import Draw, Sample, Spec
from .stationary import Stationary

__all__ = ["samples"]


def _window(size: tuple[int, ...], **options: Any) -> Window:
    """A window with stride 1, no padding and no dilation unless given."""
    rank = len(size)
    defaults: dict = {"stride": (1,) * rank, "padding": ((0, 0),) * rank, "dilation": (1,) * rank}
    return Window(size, **(defaults | options))


def _convolution(window: Window, shape: tuple[int, ...], features: int, groups: int = 1, bias: bool = True) -> Sample:
    channels = shape[-window.rank - 1]
    kernel = Stationary(groups=groups)
    first, second = (channels, features) if window.transposed else (features, channels)
    draws = {"input": Draw(shape), "weight": Draw((first, second // groups, *window.size))}
    if bias:
        draws["bias"] = Draw((features,))
    name = f"conv{'_transpose' if window.transposed else ''}{window.rank}d"
    return Sample(Spec(kernel, window, name, tuple(draws)), draws)


def _average(window: Window, shape: tuple[int, ...], **options: Any) -> Sample:
    kernel = Stationary(weights="uniform", **options)
    return Sample(Spec(kernel, window, f"avg_pool{window.rank}d", ("input",)), {"input": Draw(shape)})


def _maximum(window: Window, shape: tuple[int, ...], indices: bool = False) -> Sample:
    kernel = Stationary(weights="uniform", maximum=True, returns_indices=indices)
    return Sample(Spec(kernel, window, f"max_pool{window.rank}d", ("input",)), {"input": Draw(shape)})


def samples() -> list[Sample]:
    """Every structural variant, with the odd sizes 0 (batch), 1, 7 and 63."""
    wide = _window((3, 2), stride=(2, 1), padding=((1, 1), (0, 0)), dilation=(1, 2))
    return [
        *_convolutions(wide),
        *_transposed(),
        *_poolings(),
    ]


def _convolutions(wide: Window) -> list[Sample]:
    boundaries = [
        _convolution(_window((3, 4), padding=((1, 1), (2, 1)), boundary=name), (2, 3, 5, 7), 4)
        for name in ("zeros", "reflect", "replicate", "circular")
    ]
    return [
        *boundaries,
        _convolution(_window((3,)), (2, 3, 63), 5),
        _convolution(_window((3,), padding=((4, 0),), dilation=(2,)), (2, 3, 7), 5),  # causal
        _convolution(_window((4,), padding=((1, 2),)), (2, 3, 63), 2, bias=False),  # padding="same"
        _convolution(_window((3,), padding=((1, 1),), boundary="circular"), (3, 63), 4),  # no batch axis
        _convolution(_window((1, 1)), (2, 7, 1, 1), 3),
        _convolution(wide, (2, 4, 7, 9), 6, groups=2),
        _convolution(wide, (0, 4, 7, 9), 6, groups=2),
        _convolution(_window((3, 3), padding=((1, 1), (1, 1))), (2, 7, 5, 6), 7, groups=7, bias=False),  # depthwise
        _convolution(_window((3, 3), stride=(4, 4)), (1, 1, 63, 7), 2),
        _convolution(_window((2, 3, 1), padding=((0, 0), (1, 1), (0, 0)), stride=(1, 2, 3)), (2, 2, 4, 5, 7), 3),
        _convolution(_window((2, 2, 2), boundary="replicate", padding=((1, 0), (0, 1), (1, 1))), (2, 2, 3, 4, 5), 3),
    ]


def _transposed() -> list[Sample]:
    options = {"transposed": True, "stride": (2, 3), "padding": ((1, 1), (2, 2)), "output_padding": (1, 2)}
    return [
        _convolution(_window((4,), transposed=True, stride=(2,), padding=((1, 1),)), (2, 3, 63), 5),
        _convolution(_window((2,), transposed=True, stride=(3,)), (3, 7), 2),
        _convolution(_window((3, 5), **options), (2, 4, 5, 7), 6, groups=2),
        _convolution(_window((3, 5), dilation=(2, 1), **options), (2, 4, 1, 7), 6, groups=2, bias=False),
        _convolution(_window((3, 5), **options), (0, 4, 5, 7), 6),
        _convolution(_window((2, 1, 3), transposed=True, stride=(2, 1, 1)), (2, 3, 3, 4, 5), 2),
    ]


def _poolings() -> list[Sample]:
    ceil = {"stride": (2, 3), "padding": ((1, 1), (0, 0)), "ceil_mode": True}
    cube = _window((2, 3, 2), stride=(2, 2, 1), padding=((1, 1), (1, 1), (0, 0)))
    return [
        _average(_window((7,), stride=(3,)), (2, 3, 63)),
        _average(_window((3,), padding=((1, 1),)), (3, 7), count_include_pad=False),
        _average(_window((3, 2), **ceil), (2, 3, 7, 63)),
        _average(_window((3, 2), **ceil), (2, 3, 8, 9), count_include_pad=False),
        _average(_window((3, 2), **ceil), (0, 3, 8, 9), divisor=5),
        _average(_window((1, 1)), (2, 3, 1, 1)),
        _average(_window((3, 3), padding=((1, 1), (1, 1)), boundary="reflect"), (2, 3, 4, 5)),
        _average(cube, (2, 3, 4, 5, 7)),
        _maximum(_window((7,), stride=(3,), padding=((3, 3),)), (2, 3, 63)),
        _maximum(_window((2,), dilation=(3,)), (3, 7), indices=True),
        _maximum(_window((3, 2), dilation=(2, 3), **ceil), (2, 3, 7, 63), indices=True),
        _maximum(_window((3, 2), **ceil), (0, 3, 8, 9)),
        _maximum(_window((1, 1)), (2, 3, 1, 1)),
        _maximum(_window((2, 2), padding=((1, 1), (1, 1)), boundary="circular"), (2, 3, 4, 5)),
        _maximum(cube, (2, 3, 4, 5, 7), indices=True),
    ]
