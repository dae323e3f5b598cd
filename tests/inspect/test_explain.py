"""``explain(path)``: in full what happened at one place, and help where there is no such place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from itnet_compiler.errors import InputError
from itnet_compiler.inspect.explain import equation
from itnet_compiler.ir.dense import Dense
from itnet_compiler.ir.gated import Gated
from itnet_compiler.ir.kernel import Kernel
from itnet_compiler.ir.softmax import Softmax
from itnet_compiler.ir.stationary import Stationary
from itnet_compiler.unify import unify
from tests.inspect.models import Accumulating, Encoder, Residual, Tagger


@pytest.fixture(scope="module")
def residual() -> Any:
    return unify(Residual().eval(), torch.randn(2, 3, 16, 16))


def test_one_integral_in_full(residual: Any) -> None:
    shown = residual.explain("layer1.0.conv1")
    assert shown.startswith("layer1.0.conv1: 1 integral, 0 other operators")
    for text in (
        "models.py:19",
        "y[p] = Σ_k W[k] · x[s·p − low + d·k]",
        "conv2d, as an integral of the stationary family",
        "window[3,3] pad[1,1]",
        "linear, stationary",
        "weight: %conv1.weight f32[8,8,3,3]",
        "f32[N,8,(H+1)//2,(W+1)//2]",
        "at N=2, H=16, W=16",
        "worst relative error",
        "library, exact",
        "conv2d(input, weight, None,",
    ):
        assert text in shown


def test_a_block_with_everything_in_it(residual: Any) -> None:
    shown = residual.explain("layer1.1")
    assert shown.startswith("layer1.1: 2 integrals, 4 other operators")
    assert "── layer1.1.conv1 " in shown
    assert "── layer1.1.conv2 " in shown
    assert "layer1.1.bn1" in shown
    assert "normalisation" in shown
    assert "layer1.0" not in shown.replace("%layer1.0.relu#2", "")


def test_a_glob_shows_equal_integrals_once(residual: Any) -> None:
    shown = residual.explain("*.conv1")
    assert shown.startswith("*.conv1: 3 integrals")
    assert shown.count("\n── ") == 1
    assert "the same   layer1.1.conv1, layer1.2.conv1" in shown


def test_the_whole_model(residual: Any) -> None:
    assert residual.explain("").startswith("Residual: 8 integrals")


def test_an_operator_of_its_own_name(residual: Any) -> None:
    assert "pointwise" in residual.explain("layer1.0.add")


def test_what_was_left_alone_and_why() -> None:
    shown = unify(Accumulating().eval(), torch.randn(2, 4, 9)).explain("cumprod")
    assert "unmatched" in shown
    assert "position" in shown
    assert "models.py:80" in shown


def test_lists_of_operands_are_numbered() -> None:
    shown = unify(Tagger().eval(), torch.randint(0, 50, (2, 6))).explain("lstm")
    assert "weights[0]: %lstm.weight_ih_l0 f32[24,12]" in shown
    assert "hidden[1]: %lstm.zeros#2 f32[2,N,6]" in shown


def test_unchecked_is_said() -> None:
    shown = unify(Encoder().eval(), torch.randn(2, 7, 16), verify=False).explain("attention")
    assert "not checked; verify=False" in shown


def test_unknown_paths_get_the_closest_ones(residual: Any) -> None:
    with pytest.raises(InputError, match=r"nothing in the model is called 'layer1\.7'") as caught:
        residual.explain("layer1.7")
    assert "layer1." in (caught.value.remedy or "")
    with pytest.raises(InputError) as caught:
        residual.explain("bn1")
    assert "layer1.0.bn1" in (caught.value.remedy or "")
    with pytest.raises(InputError) as caught:
        residual.explain("zzzzzz")
    assert "print(unified)" in (caught.value.remedy or "")
    with pytest.raises(InputError):
        residual.explain("*.nothing")


@pytest.mark.parametrize("family", [Dense, Gated, Softmax, Stationary])
def test_every_family_has_an_equation(family: type[Kernel]) -> None:
    kernel = family.samples()[0].spec.kernel
    lines = equation(kernel)
    assert lines
    assert any("=" in line for line in lines)


def test_an_equation_shows_only_the_cell_at_hand() -> None:
    assert all("gru" not in line for line in equation(Gated("lstm")))
    assert any("n = tanh" in line for line in equation(Gated("gru")))
