"""How networks are registered and built, and what makes torchvision importable where its binary part cannot load."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GROUPS", "Built", "Networks", "available", "image", "prepare", "tokens"]

GROUPS = ("torch", "torchvision", "timm", "transformers")
Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Builder = Callable[[bool], Built]  # takes ``full``

_library: torch.library.Library | None = None


def available(group: str) -> bool:
    """Whether the package behind ``group`` is installed."""
    return importlib.util.find_spec(group) is not None


class Networks:
    """Builders by name, each of the group that must be installed for it."""

    def __init__(self) -> None:
        self._builders: dict[str, tuple[str, Builder]] = {}

    def add(self, group: str, name: str) -> Callable[[Builder], Builder]:
        """A decorator that registers a builder."""

        def register(builder: Builder) -> Builder:
            assert name not in self._builders, f"two networks are called {name}"
            self._builders[name] = (group, builder)
            return builder

        return register

    def names(self, group: str | None = None) -> list[str]:
        """Names that ``build`` knows, of one group or of all."""
        if group is not None and group not in GROUPS:
            raise ValueError(f"no group {group!r}; there are {', '.join(GROUPS)}")
        return [name for name, (where, _) in self._builders.items() if group in (None, where)]

    def group_of(self, name: str) -> str:
        """The group that ``name`` belongs to."""
        return self._builders[name][0]

    def build(self, name: str, *, full: bool = False) -> Built:
        """The network ``name`` in eval mode with seeded random weights, positional and keyword example inputs.

        ``full`` gives the published width, depth and input size instead of a small version.
        """
        group, builder = self._builders[name]
        prepare(group)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # construction-time advice of third parties
            torch.manual_seed(0)
            model, args, kwargs = builder(full)
        return model.eval(), args, kwargs


def image(size: int, full_size: int, full: bool) -> tuple[Tensor]:
    """A batch of two square images."""
    side = full_size if full else size
    return (torch.randn(2, 3, side, side),)


def tokens(length: int, vocabulary: int = 128) -> Tensor:
    """A batch of two rows of tokens, none of them special."""
    return torch.randint(3, vocabulary, (2, length))


def prepare(group: str = "torchvision") -> None:
    """Make ``group`` importable here, and keep it off the network.

    torchvision's binary part cannot load where torch is another build than the one it was made for. Its missing
    operators are then declared, which is all that importing it, timm or transformers takes; ``nms``, which detectors
    need to run, is written in Python.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if group != "torch" and available("torchvision"):
        _declare_torchvision_operators()


def _declare_torchvision_operators() -> None:
    global _library
    if _library is not None or _binary_part_loads():
        return
    _library = torch.library.Library("torchvision", "DEF")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
        " int sampling_ratio, bool aligned) -> Tensor",
    ):
        _library.define(schema)
    _library.impl("nms", _nms, "CPU")
    import torchvision.ops.boxes

    torchvision.ops.boxes._assert_has_ops = lambda: None


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    order, kept = scores.argsort(descending=True, stable=True), []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        low, high = torch.maximum(boxes[best, :2], boxes[rest, :2]), torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        order = rest[shared <= threshold * (area[best] + area[rest] - shared)]
    return torch.stack(kept) if kept else order


def _binary_part_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    for binary in sorted(Path(spec.origin).parent.glob("_C*.[sp][oy]*")):
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            return False
        return True
    return False
