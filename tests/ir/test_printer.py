"""The text form of a graph: golden texts, and the promises that make them worth diffing.

``python -m tests.ir.test_printer`` writes the golden texts anew; read the diff before committing it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from itnet_compiler.ir.naming import Naming, is_hidden
from itnet_compiler.ir.printer import Printer, print_graph
from itnet_compiler.ir.sizes import Sizes
from itnet_compiler.unify import unify
from tests.inspect.models import Accumulating, Encoder, Residual, Shared, Tagger

GOLDEN = Path(__file__).parent / "golden"

CASES: dict[str, Any] = {
    "residual": lambda: (Residual(depth=2), torch.randn(2, 3, 16, 16)),
    "encoder": lambda: (Encoder(), torch.randn(2, 7, 16)),
    "tagger": lambda: (Tagger(), torch.randint(0, 50, (2, 6))),
    "shared": lambda: (Shared(), (torch.randn(2, 4, 9), torch.randn(2, 1, 1))),
    "accumulating": lambda: (Accumulating(), torch.randn(2, 4, 9)),
}


def unified(model: nn.Module, inputs: Any) -> Any:
    return unify(model.eval(), inputs, verify=False)


@cache
def case(name: str) -> Any:
    return unified(*CASES[name]())


def text(name: str) -> str:
    return case(name).ir + "\n"


@cache
def image_sizes() -> tuple[Sizes, Any]:
    class Identity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1

    graph = unified(Identity(), torch.randn(4, 3, 9, 11)).graph
    return Sizes(graph), graph.find_nodes(op="placeholder")[0].meta["val"].shape


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert text(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_the_same_twice_in_one_process() -> None:
    assert unified(*CASES["residual"]()).ir + "\n" == text("residual")


def test_a_further_block_leaves_the_other_lines_as_they_are() -> None:
    short = text("residual").splitlines()
    long = unified(Residual(depth=3), torch.randn(2, 3, 16, 16)).ir.splitlines()
    head = short[: next(i for i, line in enumerate(short) if line.strip().startswith("// Residual"))]
    assert long[: len(head)] == head


def test_every_name_that_is_used_is_defined() -> None:
    """Outside the blocks names are full, inside relative; parameters are not defined in the text."""
    for name in CASES:
        graph = case(name).graph
        naming = Naming(graph)
        names = [naming.name[node] for node in naming.shown]
        assert len(set(names)) == len(names)
        for node in naming.shown:
            for source in node.all_input_nodes:
                if source in naming.block and naming.block[source] != naming.block[node]:
                    assert naming.refer(source, naming.block[node]).lstrip("/") == naming.name[source]


def test_only_integrals() -> None:
    model = case("residual")
    shown = print_graph(model.graph, "Residual", only_integrals=True)
    lines = [line for line in shown.splitlines() if " = " in line]
    assert len(lines) == len(model.integrals)
    assert all(" = integral(" in line and "@library" in line for line in lines)


def test_support_nodes_are_hidden_and_getitem_is_folded() -> None:
    shown = text("tagger")
    assert "getitem" not in shown
    assert "sym_size" not in shown
    assert "%lstm.0" in shown


class Sized(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x.flatten(1), y.new_zeros(x.shape[0], 2 * y.shape[1] + 1)], 1)


def test_symbolic_sizes_are_readable() -> None:
    shown = unified(Sized(), (torch.randn(2, 3, 8, 10), torch.randn(5, 7))).ir
    assert "Sized(%x: f32[N,S,H,W], %y: f32[N2,L])" in shown
    assert "f32[N,L*2+1]" in shown
    assert re.search(r"s\d", shown) is None


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda n, h: n * 8, "N*8"),
        (lambda n, h: (h - 1) // 2 + 1, "(H+1)//2"),
        (lambda n, h: n * h, "N*H"),
        (lambda n, h: h - 3, "H-3"),
        (lambda n, h: 3 - h, "3-H"),
        (lambda n, h: n * (h + 1), "N*(H+1)"),
        (lambda n, h: h // 4, "H//4"),
        (lambda n, h: h % 4, "H%4"),
        (lambda n, h: n, "N"),
        (lambda n, h: 7, "7"),
    ],
)
def test_expressions(build: Any, expected: str) -> None:
    sizes, shape = image_sizes()
    assert sizes.text(build(shape[0], shape[2])) == expected


def test_example_sizes() -> None:
    graph = case("encoder").graph
    assert Sizes(graph).examples == {"N": 2, "L": 7}


@pytest.mark.parametrize(
    ("dtype", "short"), [(torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.int64, "i64"), (torch.bool, "bool")]
)
def test_types(dtype: torch.dtype, short: str) -> None:
    sizes = Sizes(torch.fx.Graph())
    value = torch.empty(2, 3, dtype=dtype)
    assert sizes.type(value) == f"{short}[2,3]"
    assert sizes.type((value, None, 3)) == f"({short}[2,3], , int)"


def test_a_line_of_its_own() -> None:
    graph = case("encoder").graph
    node = next(node for node in graph.nodes if "integral" in node.meta)
    assert Printer(graph).line(node).startswith("%attention: f32[N,4,L,4] = integral(%unbind.0, %unbind.1, %unbind.2)")
    assert not is_hidden(node)


def test_names_of_another_block_that_would_be_ambiguous_count_from_the_root() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)
            self.last = nn.Linear(4, 4)

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return self.last(self.mix(x)) + skip

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)
            self.part = Part()

        def forward(self, x: Tensor) -> Tensor:
            y = self.mix(x)
            return self.part(y, y)

    shown = unified(Whole(), torch.randn(2, 4)).ir
    assert "%mix:  f32[N,4] = linear(%/mix, %mix.{weight,bias})" in shown
    assert "%add:  f32[N,4] = add(%last, %/mix)" in shown


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for known in CASES:
        (GOLDEN / f"{known}.txt").write_text(text(known), encoding="utf-8")
