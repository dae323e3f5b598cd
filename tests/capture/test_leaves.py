"""Recurrent layers are captured as one node with a dynamic length; outside a capture nothing is changed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.nn.modules import rnn
from torch.nn.utils.rnn import pack_sequence

from itnet_compiler.capture.clone import shallow_clone
from itnet_compiler.capture.leaves import LEAVES, leaves_installed, restore_leaf, restore_leaves

pytestmark = pytest.mark.filterwarnings(
    "ignore:The tensor attribute.*assigned during export", "ignore:LSTM with projections"
)

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "lstm": lambda **settings: nn.LSTM(4, 6, **settings),
    "projection": lambda **settings: nn.LSTM(4, 6, proj_size=3, **settings),
    "gru": lambda **settings: nn.GRU(4, 6, **settings),
    "rnn_tanh": lambda **settings: nn.RNN(4, 6, **settings),
    "rnn_relu": lambda **settings: nn.RNN(4, 6, nonlinearity="relu", **settings),
}


def _export(model: nn.Module, *inputs: Any) -> ExportedProgram:
    free = torch.utils._pytree.tree_map(lambda leaf: dict.fromkeys(range(leaf.dim()), Dim.AUTO), inputs)
    with leaves_installed():
        program = torch.export.export(model, inputs, strict=False, dynamic_shapes=free)
    found = [node for node in program.graph.nodes if restore_leaf(node)]
    assert len(found) == 1
    assert str(found[0].target) in {f"aten.{leaf.name}.input" for leaf in LEAVES}
    program.graph_module.recompile()
    return program


def _same(program: ExportedProgram, model: nn.Module, *inputs: Any) -> None:
    """Equal outputs and parameter gradients with the same seed."""
    results = []
    for run in (program.module(), model):
        model.zero_grad()
        torch.manual_seed(0)
        outputs = torch.utils._pytree.tree_leaves(run(*inputs))
        torch.stack([out.float().square().sum() for out in outputs]).sum().backward()
        results.append((outputs, [parameter.grad.clone() for parameter in model.parameters()]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize(("layer", "train"), [*((layer, True) for layer in LAYERS), ("lstm", False)])
def test_length_and_batch_are_dynamic(layer: str, train: bool) -> None:
    model = LAYERS[layer](num_layers=2, dropout=0.3, bidirectional=True, batch_first=True).train(train)
    program = _export(model, torch.randn(3, 5, 4))
    _same(program, model, torch.randn(2, 9, 4))
    _same(program, model, torch.randn(7, 1, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layer", ["projection", "gru"])
def test_dtypes(layer: str, dtype: torch.dtype) -> None:
    model = LAYERS[layer]().to(dtype)
    _same(_export(model, torch.randn(5, 3, 4, dtype=dtype)), model, torch.randn(8, 2, 4, dtype=dtype))


def test_without_batch_and_with_state() -> None:
    gru, lstm = nn.GRU(4, 6), nn.LSTM(4, 6)
    _same(_export(gru, torch.randn(5, 4)), gru, torch.randn(9, 4))
    _same(_export(gru, torch.randn(5, 3, 4), torch.randn(1, 3, 6)), gru, torch.randn(9, 2, 4), torch.randn(1, 2, 6))
    program = _export(lstm, torch.randn(5, 3, 4), (torch.randn(1, 3, 6), torch.randn(1, 3, 6)))
    _same(program, lstm, torch.randn(9, 2, 4), (torch.randn(1, 2, 6), torch.randn(1, 2, 6)))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_fake_outputs_have_the_real_layout(layer: str, batch_first: bool) -> None:
    model = LAYERS[layer](bidirectional=True, batch_first=batch_first)
    x = torch.randn(3, 5, 4)
    with leaves_installed(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = model(mode.from_tensor(x))
    real = model(x)
    for one, other in zip(*map(torch.utils._pytree.tree_leaves, (fake, real)), strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_the_model_is_left_alone() -> None:
    """What torch.export does to _flat_weights stays in a throw-away clone."""
    model = nn.Sequential(nn.LSTM(4, 6))
    weights, listed = model[0]._flat_weights, list(model[0]._flat_weights)
    _export(shallow_clone(model), torch.randn(5, 3, 4))
    assert model[0]._flat_weights is weights
    assert all(now is before for now, before in zip(weights, listed, strict=True))


def _places() -> list[Any]:
    """What is found at every place that a capture changes."""
    return [
        place[key] if isinstance(place, dict) else getattr(place, key) for leaf in LEAVES for place, key in leaf.places
    ]


def _installed() -> bool:
    return _places() != before


before = _places()
own_attributes = sorted(vars(rnn._VF))


def test_everything_is_put_back() -> None:
    with leaves_installed():
        assert _installed()
        with leaves_installed():
            pass
        assert _installed(), "an inner block ended the outer one"
    assert not _installed()
    assert sorted(vars(rnn._VF)) == own_attributes


def test_everything_is_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), leaves_installed():
        _ = 1 / 0
    assert not _installed()


def test_other_threads_and_real_tensors_get_the_original() -> None:
    model, x = nn.LSTM(4, 6), torch.randn(5, 3, 4)
    expected = model(x)[0]
    found: list[Tensor] = []
    with leaves_installed():
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            traced = model(mode.from_tensor(x))[0]
        thread = threading.Thread(target=lambda: found.append(model(x)[0]))
        thread.start()
        thread.join()
        found.append(model(x)[0])
        found.append(
            torch.lstm(x, [torch.zeros(1, 3, 6)] * 2, model._flat_weights, True, 1, 0.0, True, False, False)[0]
        )
        packed = model(pack_sequence([torch.randn(3, 4), torch.randn(2, 4)]))[0]
    assert traced.shape == expected.shape
    for output in found:
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        assert output.grad_fn is not None
    assert packed.data.shape == (5, 6)


def test_autocast_decides_dtypes_inside_the_function() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.layer(x)[0]

    model, x = Half(), torch.randn(5, 3, 4)
    with leaves_installed():
        program = torch.export.export(model, (x,), strict=False)
    assert not any(restore_leaf(node) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), model(x))


def test_overlapping_captures_of_two_threads() -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with leaves_installed():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(10)
    with leaves_installed():
        pass
    assert _installed(), "the other thread still captures"
    leave.set()
    thread.join()
    assert not _installed()


def test_leaves_in_nested_graphs() -> None:
    """A no_grad block is a graph of its own in the exported one."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.layer(x)[0]
            return self.layer(x)[0] + y

    model, x = Frozen(), torch.randn(5, 3, 4)
    with leaves_installed():
        program = torch.export.export(model, (x,), strict=False, dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))
    assert restore_leaves(program.graph_module) == 2
    assert restore_leaves(program.graph_module) == 0
    _same(program, model, torch.randn(7, 2, 4))


def test_only_leaves_are_restored() -> None:
    graph = torch.fx.Graph()
    node = graph.call_function(torch.ops.aten.relu.default, (graph.placeholder("x"),))
    assert not restore_leaf(node)
    assert node.target is torch.ops.aten.relu.default


CELLS: dict[str, Callable[..., nn.Module]] = {
    "lstm_cell": nn.LSTMCell,
    "gru_cell": nn.GRUCell,
    "rnn_tanh_cell": nn.RNNCell,
    "rnn_relu_cell": lambda *sizes: nn.RNNCell(*sizes, nonlinearity="relu"),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_a_leaf_with_the_layout_of_the_real_one(name: str) -> None:
    model, leaf = CELLS[name](4, 6), next(leaf for leaf in LEAVES if leaf.name == name)
    x, state = torch.randn(3, 4), torch.randn(6, 3).T
    hidden = (state, state) if name == "lstm_cell" else state
    free = torch.utils._pytree.tree_map(lambda value: dict.fromkeys(range(value.dim()), Dim.AUTO), (x, hidden))
    with leaves_installed():
        program = torch.export.export(model, (x, hidden), strict=False, dynamic_shapes=free)
    (node,) = [node for node in program.graph.nodes if restore_leaf(node)]
    assert node.target is leaf.operator
    real = model(x, hidden)
    recorded = node.meta["val"]
    for fake, tensor in zip(*map(torch.utils._pytree.tree_leaves, (recorded, real)), strict=True):
        assert (fake.dtype, fake.stride()) == (tensor.dtype, tensor.stride())
    program.graph_module.recompile()
    x, state = torch.randn(5, 4), torch.randn(5, 6)
    hidden = (state, state) if name == "lstm_cell" else state
    torch.testing.assert_close(program.module()(x, hidden), model(x, hidden))


def test_a_cell_whose_state_has_another_batch_size_is_refused() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor, h: Tensor, w: Tensor, u: Tensor) -> Any:
            return torch.gru_cell(x, h, w, u)

    inputs = torch.randn(3, 4), torch.randn(2, 6), torch.randn(18, 4), torch.randn(18, 6)
    with leaves_installed(), pytest.raises(Exception, match="differ in batch size"):
        torch.export.export(Wrong(), inputs, strict=False)
