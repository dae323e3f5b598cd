"""The rewritten graph as a networkx object."""

from __future__ import annotations

import json
import sys
from typing import Any

import networkx
import pytest
import torch

from itnet_compiler.errors import ItnetError
from itnet_compiler.unify import unify
from tests.inspect.models import Residual, Tagger


@pytest.fixture(scope="module")
def graph() -> Any:
    return unify(Residual(depth=2).eval(), torch.randn(2, 3, 16, 16), verify=False).to_networkx()


def test_nodes_carry_what_they_are(graph: Any) -> None:
    assert graph.graph["model"] == "Residual"
    conv = graph.nodes["layer1.0.conv1"]
    assert conv["kind"] == "integral"
    assert conv["family"] == "stationary"
    assert conv["origin"] == "conv2d"
    assert conv["path"] == "layer1.0.conv1"
    assert conv["shape"] == "f32[N,8,(H+1)//2,(W+1)//2]"
    assert conv["source_line"] == "models.py:19"
    assert graph.nodes["layer1.0.bn1"]["kind"] == "normalisation"
    assert graph.nodes["x"]["kind"] == "input"
    assert graph.nodes["output"]["kind"] == "output"


def test_edges_follow_the_data(graph: Any) -> None:
    assert networkx.is_directed_acyclic_graph(graph)
    assert list(graph.successors("stem")) == ["layer1.0.conv1", "layer1.0.add"]
    assert list(graph.predecessors("output")) == ["fc"]
    assert networkx.has_path(graph, "x", "output")


def test_hidden_nodes_are_passed_through() -> None:
    graph = unify(Tagger().eval(), torch.randint(0, 50, (2, 6)), verify=False).to_networkx()
    assert "head" in graph.successors("lstm")
    assert "ids" in graph.predecessors("embed")
    assert not any("getitem" in name or "sym_size" in name for name in graph)


def test_attributes_are_plain(graph: Any) -> None:
    json.dumps(networkx.node_link_data(graph, edges="links"))


def test_without_networkx_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unify(Tagger().eval(), torch.randint(0, 50, (2, 6)), verify=False)
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ItnetError, match="networkx is not installed") as caught:
        model.to_networkx()
    assert caught.value.remedy == "pip install networkx"
