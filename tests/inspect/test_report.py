"""``unified.report()``: complete, serialisable, honest about what was not done."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from itnet_compiler.inspect.report import Report, percent
from itnet_compiler.inspect.text import error, shorten, table, units
from itnet_compiler.unify import unify
from tests.inspect.models import Accumulating, Encoder, Residual, Tagger


@pytest.fixture(scope="module")
def residual() -> Any:
    return unify(Residual().eval(), torch.randn(2, 3, 16, 16))


@pytest.fixture(scope="module")
def accumulating() -> Any:
    return unify(Accumulating().eval(), torch.randn(2, 4, 9))


def test_a_row_for_every_integral(residual: Any) -> None:
    rows = residual.report().rows
    assert [row.name for row in rows] == list(residual.integrals)
    first = rows[0]
    assert (first.origin, first.family, first.domain) == ("conv2d", "stationary", "window[3,3] stride[2,2] pad[1,1]")
    assert first.parameters == 8 * 3 * 9 + 8
    assert first.source_line == "models.py:32"
    assert first.verification == "verified"
    assert first.error is not None
    assert first.error < 1e-12
    assert first.lowering == "library"
    assert first.exact


def test_costs_are_those_of_the_example(residual: Any) -> None:
    first = residual.report().rows[0]
    assert first.work.flops == 2 * (2 * 8 * 8 * 8) * 3 * 9 + 2 * 8 * 8 * 8
    assert residual.report().sizes() == "N=2, H=16, W=16"


def test_totals_include_everything_else(residual: Any) -> None:
    report = residual.report()
    assert report.totals["integrals"].flops == sum(row.work.flops for row in report.rows)
    assert report.totals["everything else"].flops > 0


def test_parameters_add_up(residual: Any) -> None:
    model = Residual()
    used = sum(p.numel() for p in model.parameters())
    used += sum(b.numel() for name, b in model.named_buffers() if not name.endswith("num_batches_tracked"))
    assert sum(residual.report().facts.parameters) == used


def test_coverage_and_categories(residual: Any, accumulating: Any) -> None:
    assert residual.report().coverage == 1.0
    categories = residual.report().facts.categories
    assert categories["integral"] == 8
    assert categories["normalisation"] == 3
    assert categories["unmatched"] == 0
    assert accumulating.report().coverage == 0.5


def test_every_miss_has_a_reason_and_a_line(accumulating: Any) -> None:
    (miss,) = accumulating.report().unmatched
    assert miss.operator == "cumprod"
    assert miss.source_line == "models.py:80"
    assert miss.reason
    shown = str(accumulating.report())
    assert "left as they were:" in shown
    assert miss.reason in shown


def test_plain_text(residual: Any) -> None:
    shown = str(residual.report())
    for text in (
        "layer1.2.conv2",
        "total integrals",
        "total everything else",
        "graphs: eval",
        "bit-equal",
        "N=2, H=16",
    ):
        assert text in shown
    assert len({line.index("conv2d") for line in shown.splitlines() if "conv2d" in line and "pool" not in line}) == 1


def test_rich_shows_the_same(residual: Any) -> None:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(residual.report())
    shown = captured.get()
    assert "layer1.2.conv2" in shown
    assert "mixing coverage 100 %" in shown


def test_dictionary_is_json(residual: Any, accumulating: Any) -> None:
    for model in (residual, accumulating):
        plain = model.report().to_dict()
        again = json.loads(json.dumps(plain))
        assert again == plain
        assert len(plain["integrals"]) == len(model.integrals)
        assert {"flops", "bytes", "error", "family", "domain"} <= set(plain["integrals"][0])
    assert accumulating.report().to_dict()["unmatched"][0]["module_path"] == ""


def test_notebooks_get_escaped_html(residual: Any) -> None:
    shown = residual.report()._repr_html_()
    assert "<table>" in shown
    assert html.escape("layer1.2.conv2") in shown
    assert shown.count("<tr>") == 1 + len(residual.integrals) + 2


def test_skipped_verification_is_said() -> None:
    model = unify(Encoder().eval(), torch.randn(2, 7, 16), verify=False)
    report = model.report()
    assert report.rows[0].verification == "skipped"
    assert "not verified" in report.headline()
    assert report.to_dict()["verified"] is False
    assert report.to_dict()["comparison"] is None


def test_a_model_without_integrals() -> None:
    report: Report = unify(torch.nn.Linear(3, 3), torch.randn(2, 3)).report()
    assert report.rows == []
    assert report.coverage == 1.0
    assert "0 integrals (none)" in str(report)


def test_further_variants_are_listed() -> None:
    model = unify(Tagger().eval(), torch.randint(0, 50, (2, 6)))
    model.train()(torch.randint(0, 50, (2, 6)))
    assert model.report().to_dict()["variants"] == ["eval", "train"]


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (25_557_032, "25.6 M"), (4.1e9, "4.10 G"), (999_999, "1.00 M")],
)
def test_units(number: float, shown: str) -> None:
    assert units(number) == shown


def test_small_helpers() -> None:
    assert units(2048, "B") == "2.05 kB"
    assert error(None) == "–"
    assert error(0.0) == "0"
    assert error(2.2e-16) == "2e-16"
    assert percent(1.0) == "100 %"
    assert percent(0.99999) == "99.9 %"
    assert shorten("a" * 50, 21) == "a" * 10 + "…" + "a" * 10
    assert table([("a", "", "1"), ("bb", "", "22")], right=(2,)) == ["a    1", "bb  22"]


class Chosen(nn.Module):
    """Attends to the two keys with the largest weights, which no rule takes."""

    def forward(self, q, k, v):
        weights = (q @ k.mT).softmax(-1)
        return weights.where(weights >= weights.topk(2, -1).values[..., -1:], weights.square()) @ v


class Straight(nn.Module):
    def forward(self, q, k, v):
        return (q @ k.mT).softmax(-1).square() @ v


class Sliced(nn.Module):
    def forward(self, q, k, v):
        return (q @ k.mT).softmax(-1)[..., 1:] @ v[..., 1:, :]


def test_a_softmax_that_is_no_attention_says_who_takes_it_or_what_the_rule_met():
    given = tuple(torch.randn(2, 3, 5, 4) for _ in range(3))
    for model, reason in (
        (Straight(), "go to aten.square"),
        (Chosen(), "aten.topk"),
        (Sliced(), "some positions are dropped"),
    ):
        misses = {miss.operator: miss for miss in unify(model, given).report().unmatched}
        assert {"matmul", "softmax.int"} <= set(misses)
        softmax = misses["softmax.int"]
        assert softmax.reason.startswith("attention_by_hand: ") and reason in softmax.reason, softmax
        assert softmax.source_line is not None


def test_the_length_of_a_loop_is_said_to_be_fixed() -> None:
    class Average(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state, states = torch.zeros_like(x[:, 0]), []
            for step in range(x.shape[1]):
                state = 0.9 * state + x[:, step]
                states.append(state)
            return torch.stack(states, 1)

    unified = unify(Average(), torch.randn(2, 8, 3))
    said = "length fixed at 8 steps; another length is captured when it comes"
    assert f"test_report.py:{_line_of('state = 0.9')}: {said}" in str(unified.report())
    assert said in str(unified.explain(""))
    (loop,) = unified.report().to_dict()["loops"]
    assert loop["steps"] == 8
    assert unify(nn.Linear(3, 3), torch.randn(2, 3)).report().to_dict()["loops"] == []


def _line_of(text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, start=1) if line.strip().startswith(text))
