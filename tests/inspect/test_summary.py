"""``print(unified)``: one screen, equal blocks once, misses with reasons."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itnet_compiler.inspect.folding import fold, lines
from itnet_compiler.inspect.report import Report
from itnet_compiler.inspect.summary import summary
from itnet_compiler.unified import program_of
from itnet_compiler.unify import lower, unify
from tests.inspect.models import Accumulating, Block, Encoder, Residual, Tagger

IMAGE = torch.randn(2, 3, 16, 16)


def unified(model: nn.Module, inputs: Any, **options: Any) -> Any:
    return unify(model.eval(), inputs, **{"verify": False} | options)


@cache
def stages() -> Any:
    return unified(Stages(), torch.randn(2, 4, 16, 16))


def labels(model: Any, depth: int | None = None) -> list[str]:
    shown = lines(fold(Report(program_of(model)).rows, depth))
    return [f"{'  ' * line.depth}{line.label} {line.times} {line.kinds}".rstrip() for line in shown]


def test_what_print_shows() -> None:
    shown = str(unified(Residual(), IMAGE, verify=True)).splitlines()
    assert shown[0].startswith(
        "Residual: 8 integrals (7 stationary, 1 dense) · mixing coverage 100 % · verified, worst error"
    )
    assert "  layer1.0 … 2         × 3" in shown
    assert any(line.split() == "conv1 … 2 × 2 conv2d window[3,3] pad[1,1] stationary".split() for line in shown)
    assert any("everything else: 10 pointwise, 3 normalisation, 1 re-indexing" in line for line in shown)
    assert any("compared with the original: outputs bit-equal" in line for line in shown)
    assert max(map(len, shown)) <= 100


def test_equal_blocks_are_folded() -> None:
    assert labels(unified(Residual(depth=5), IMAGE)) == [
        "stem",
        "layer1.0 … 4 × 5",
        "  conv1 … 2 × 2",
        "adaptive_avg_pool2d",
    ]


class Stages(nn.Module):
    """Stages of 2, 4 and 3 blocks, the first of them with another window."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = self.stage(2, 1)
        self.layer2 = self.stage(4, 2)
        self.layer3 = self.stage(3, 2)

    @staticmethod
    def stage(depth: int, stride: int) -> nn.Sequential:
        first = nn.Conv2d(4, 4, 3, stride=stride, padding=1)
        return nn.Sequential(first, *(Block(4) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(x)))


def test_stages_that_differ_in_depth_only_are_folded_too() -> None:
    assert labels(stages()) == [
        "layer1",
        "  0",
        "  1 … 2 × 2",
        "    conv1 … 2 × 2",
        "layer2 … 3 × 2",
        "  0",
        "  1 … × 4, 3",
        "    conv1 … 2 × 2",
    ]


def test_blocks_beyond_the_depth_are_counted_by_layer() -> None:
    model = stages()
    assert labels(model, 0) == ["layer1  5 conv2d", "layer2  9 conv2d", "layer3  7 conv2d"]


def test_numbers_left_out_are_listed() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.ReLU(), nn.Conv1d(4, 4, 1), nn.ReLU(), nn.Conv1d(4, 4, 1))
    assert labels(unified(model, torch.randn(2, 4, 5))) == ["0, 2, 4 × 3"]


class Wide(nn.Module):
    """Forty different convolutions in blocks of four."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(block, layer) for block in range(10) for layer in range(4)]
        self.blocks = nn.ModuleList(
            nn.Sequential(*(nn.Conv1d(2, 2, 1 + 2 * (4 * b + i), padding=4 * b + i) for b, i in sizes if b == block))
            for block in range(10)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_screen_is_enough() -> None:
    shown = str(unified(Wide(), torch.randn(2, 2, 90)))
    assert len(shown.splitlines()) <= 40
    assert "blocks.0 … 9  × 10  4 conv1d" in " ".join(shown.split("\n"))


def test_a_long_flat_model_is_cut() -> None:
    layers = [nn.Conv1d(2, 2, 1 + 2 * i, padding=i) for i in range(36)]
    shown = str(unified(nn.Sequential(*layers), torch.randn(2, 2, 80))).splitlines()
    assert len(shown) <= 40
    assert "  … and 6 more, see .report()" in shown


def test_misses_are_shown_with_reason_and_line() -> None:
    shown = str(unified(Accumulating(), torch.randn(2, 4, 9)))
    assert "mixing coverage 50 %" in shown
    at = shown.splitlines().index("  left as they were:")
    assert shown.splitlines()[at + 1].split() == ["cumprod", "cumprod", "models.py:80"]
    assert "position" in shown.splitlines()[at + 2]


class Many(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for axis in range(9):
            x = torch.cumsum(x, 1) * (axis + 1)
        return x + torch.cumprod(x, 1)


def test_equal_misses_are_counted() -> None:
    shown = str(unified(Many(), torch.randn(2, 5, 3)))
    assert "× 9" in shown
    assert "no operator that an integral could stand for was found" in shown


def test_not_verified_is_said() -> None:
    assert "not verified (verify=False)" in str(unified(Encoder(), torch.randn(2, 7, 16)))


def test_plans_other_than_the_default_are_shown() -> None:
    model = unified(Tagger(), torch.randint(0, 50, (2, 6)))
    assert "run by" not in str(model)
    lower(model, method="reference")
    assert "run by" in str(model)
    assert "reference" in str(model)


def test_max_pooling_and_depthwise_convolutions_are_recognisable() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(self.conv(x), 2)

    shown = str(unified(Pooled(), IMAGE))
    assert "max" in shown
    grouped = str(unified(nn.Conv2d(4, 8, 3, groups=4), torch.randn(2, 4, 8, 8)))
    assert "depthwise" in grouped


def test_fallbacks_are_shown() -> None:
    model = unified(Encoder(), torch.randn(2, 7, 16))
    program_of(model).fallbacks.append("train mode, x: float32[·,·]: no")
    assert "original code runs: train mode" in summary(program_of(model))


def test_nothing_captured_is_no_error() -> None:
    model = unified(Encoder(), torch.randn(2, 7, 16))
    program_of(model).variants.clear()
    assert str(model) == "Encoder: nothing captured; it happens at the first call"


@pytest.mark.parametrize("depth", [None, 0, 1, 2])
def test_folding_loses_no_integral(depth: int | None) -> None:
    rows = Report(program_of(stages())).rows

    def total(items: list[Any]) -> int:
        own = sum(sum(item.counts) for item in items if item.row is not None)
        return own + sum(sum(item.kinds.values()) for item in items) + sum(total(item.parts) for item in items)

    assert total(fold(rows, depth)) >= 1
    if depth == 0:
        assert total(fold(rows, depth)) == len(rows)
