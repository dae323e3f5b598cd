"""Regions of another mode within a forward: recorded while tracing, put in line, and run as in the original."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import itnet
from itnet_compiler.capture.export import capture
from itnet_compiler.capture.regions import modes_recorded
from itnet_compiler.capture.signature import SignatureReader
from itnet_compiler.ir.mode import Autocast, Grad, Inference, mode_of
from itnet_compiler.passes.effects import Effects
from tests import foreign

AMBIENTS = [torch.enable_grad, torch.no_grad, torch.inference_mode]
OFF, ON = Grad(False), Grad(True)


class Model(nn.Module):
    """A function of one tensor of (batch, 4, positions), with a few layers and a buffer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.conv, self.other = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))


def graph_of(function: Callable[..., Any], x: Tensor = X) -> torch.fx.Graph:
    model = Model(function)
    return capture(model, SignatureReader(inspect.signature(model.forward)).read((x,), {})).graph


def modes(function: Callable[..., Any], *names: str) -> list[Any]:
    """Modes of the convolutions (or calls of the operators named), in order."""
    wanted = names or ("conv1d",)
    calls = [node for node in graph_of(function).nodes if node.op == "call_function"]
    return [mode_of(node) for node in calls if str(node.target).split(".")[1] in wanted]


def leaves(value: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(value)


def same(value: Any, expected: Any) -> None:
    for a, b in zip(leaves(value), leaves(expected), strict=True):
        assert a.requires_grad == b.requires_grad and a.is_inference() == b.is_inference()
        assert a.dtype == b.dtype and torch.equal(a, b)


def check(model: nn.Module, *inputs: Tensor, train: bool = False) -> Any:
    """Values, gradients, what requires them and what is written equal those of a copy, in every ambient mode."""
    model.train(train)
    unified = itnet.unify(model, inputs, copy=True)
    for ambient in AMBIENTS:
        twin = copy.deepcopy(model)
        unified.load_state_dict(twin.state_dict())
        with ambient():
            torch.manual_seed(0)
            expected = twin(*inputs)
            torch.manual_seed(0)
            result = unified(*inputs)
        same(result, expected)
        if any(leaf.requires_grad for leaf in leaves(expected)):
            unified.zero_grad()
            for outputs in (result, expected):
                sum(leaf.double().square().sum() for leaf in leaves(outputs) if leaf.requires_grad).backward()
            for (name, a), b in zip(unified.named_parameters(), twin.parameters(), strict=True):
                assert (a.grad is None) == (b.grad is None), name
                assert a.grad is None or torch.equal(a.grad, b.grad), name
        for key, value in twin.state_dict().items():
            assert torch.equal(unified.state_dict()[key], value), key
    assert "the original code runs" not in str(unified.report())
    return unified


# ---- what is recorded


def frozen(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = m.conv(x)
    return m.other(h)


def enabled_within(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        a = m.conv(x)
        with torch.enable_grad():
            b = m.other(x)
        c = m.conv(b)
    return a, b, c, m.conv(c)


def grad_within_autocast(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    with torch.autocast("cpu", torch.bfloat16):
        a = m.conv(x)
        with torch.no_grad():
            b = m.conv(a)
        c = m.other(b)
    return a, b, c


def autocast_within_grad(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        a = m.conv(x)
        with torch.autocast("cpu", torch.bfloat16):
            b = m.conv(a)
            with torch.autocast("cpu", enabled=False):
                c = m.conv(b.float())
            with torch.enable_grad():
                d = m.other(c)
    return a, b, c, d


def island(m: Any, x: Tensor) -> Tensor:
    h = m.conv(x)
    with torch.autocast("cpu", enabled=False):
        h = m.other(h.float())
    return m.conv(h)


def test_each_operator_knows_its_mode():
    low = Autocast("cpu", torch.bfloat16, True, None, 1)
    off = Autocast("cpu", torch.bfloat16, False, None, 2)
    assert modes(frozen) == [(OFF,), ()]
    assert modes(enabled_within) == [(OFF,), (OFF, ON), (OFF,), ()]
    assert modes(grad_within_autocast) == [(low,), (low, OFF), (low,)]
    assert modes(autocast_within_grad) == [(OFF,), (OFF, low), (OFF, low, off), (OFF, low, ON)]


def test_other_spellings():
    def statement(m: Any, x: Tensor) -> Tensor:
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        x = m.conv(x)
        torch.set_grad_enabled(before)
        return m.conv(x)

    @torch.no_grad()
    def decorated(m: Any, x: Tensor) -> Tensor:
        return m.conv(x)

    def switched(m: Any, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(m.training):
            x = m.conv(x)
        with torch.set_grad_enabled(False):
            return m.conv(x)

    def twice(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad(), torch.no_grad():
            x = m.conv(x)
        return m.conv(x)

    def raw(m: Any, x: Tensor) -> Tensor:
        torch._C._set_grad_enabled(False)
        x = m.conv(x)
        torch._C._set_grad_enabled(True)
        return m.conv(x)

    assert modes(statement) == modes(twice) == modes(raw) == [(OFF,), ()]
    assert modes(decorated) == [(OFF,)]
    assert modes(switched) == [(ON,), (OFF,)]


def test_two_autocast_blocks_are_two():
    def blocks(m: Any, x: Tensor) -> Tensor:
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                x = m.conv(x)
        return x

    (first,), (second,) = modes(blocks)
    assert (first.number, second.number) == (1, 2)
    assert first.cache is second.cache is False


def test_no_body_is_left():
    for function in (frozen, enabled_within, grad_within_autocast, autocast_within_grad, island):
        graph = graph_of(function)
        assert not any("wrap_with" in str(node.target) or "submod" in str(node.target) for node in graph.nodes)
        graph.lint()


def test_other_higher_order_operators_keep_their_bodies():
    def branching(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.cond(x.sum() > 0, lambda x: x.cos(), lambda x: x.sin(), (x,))
        return m.conv(y) + x

    unified = check(Model(branching), X)
    assert "cond" in unified.ir


def test_nothing_is_patched_afterwards_and_other_threads_are_left_alone():
    before = torch.no_grad.__enter__, torch.autocast.__init__, torch.fx.proxy.TracerBase.create_node
    seen: list[Any] = []

    def elsewhere() -> None:
        with torch.no_grad():
            seen.append(mode_of(torch.fx.symbolic_trace(nn.Identity()).graph.output_node()))

    with modes_recorded():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with pytest.raises(ZeroDivisionError), torch.no_grad():
            1 / 0  # noqa: B018
        assert mode_of(torch.fx.symbolic_trace(nn.Identity()).graph.output_node()) == ()
    assert seen == [()]
    assert before == (torch.no_grad.__enter__, torch.autocast.__init__, torch.fx.proxy.TracerBase.create_node)


# ---- what runs


@pytest.mark.parametrize("function", [frozen, enabled_within, grad_within_autocast, autocast_within_grad, island])
@pytest.mark.parametrize("train", [False, True])
def test_same_function(function, train):
    unified = check(Model(function), X, train=train)
    assert all(node.verification.status == "verified" for node in unified.integrals.values())
    count = unified.graph.find_nodes(op="call_function", target=torch.ops.aten.conv1d.default)
    assert not count and len(unified.integrals) >= 2


def test_a_frozen_backbone_is_an_integral_in_its_region():
    unified = itnet.unify(Model(frozen), X)
    marked = [line for line in unified.ir.splitlines() if line.endswith("   in no_grad")]
    assert len(marked) == 1 and "%conv" in marked[0] and "integral" in marked[0]
    assert unified.ir == itnet.unify(Model(frozen), X).ir


def test_an_island_within_the_callers_autocast():
    unified = itnet.unify(model := Model(island), X, copy=True)
    with torch.autocast("cpu", torch.bfloat16):
        result, expected = unified(X), model(X)
    same(result, expected)
    assert result.dtype is torch.bfloat16


def test_inference_mode_within():
    def within(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            a = m.conv(x)
        return a, m.other(x)

    assert modes(within) == [(Inference(True),), ()]
    check(Model(within), X)


def test_copies_and_mode_changes():
    unified = itnet.unify(model := Model(enabled_within), X, copy=True)
    twin = copy.deepcopy(unified)
    for pair in (unified, twin):
        for train in (True, False):
            same(pair.train(train)(X), model.train(train)(X))
    assert twin.ir == unified.ir


# ---- what is written


def test_a_buffer_updated_in_a_region():
    def average(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            m.mean.mul_(0.9).add_(x.mean((0, 2)), alpha=0.1)
        return m.conv(x - m.mean[:, None])

    check(Model(average), X)


def test_statistics_updated_for_their_own_sake():
    def observed(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            m.norm(x)
        return m.conv(x)

    unified = check(Model(observed), X, train=True)
    assert "batch_norm" in unified.ir
    assert not torch.equal(unified.norm.running_mean, torch.zeros(4))


class Teacher(nn.Module):
    """A student and the moving average of its parameters, updated by each call in training."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Conv1d(4, 4, 3, padding=1)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for p, q in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                p.mul_(0.9).add_(q * 1.5, alpha=0.1)
            target = self.teacher(x)
        return self.student(x), target


def test_a_momentum_teacher():
    unified = check(Teacher(), X, train=True)
    student, teacher = unified.integrals["student"], unified.integrals["teacher"]
    assert student.verification.status == teacher.verification.status == "verified"


def test_the_update_of_a_teacher_is_seen_as_writing():
    model = Teacher()
    graph = capture(model, SignatureReader(inspect.signature(model.forward)).read((X,), {})).graph
    writers = [node for node in graph.nodes if str(node.target) in ("aten.mul_.Tensor", "aten.add_.Tensor")]
    assert len(writers) == len(Effects(graph).writes) == 4
    assert all("in place" in str(Effects(graph).obstacle([node])) for node in writers)


@pytest.mark.parametrize("train", [False, True])
def test_spectral_norm(train):
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv1d(4, 4, 3)), nn.ReLU())
    unified = check(model, X, train=train)
    assert len(unified.integrals) == 1
    before = unified.state_dict()["0.parametrizations.weight.0._u"].clone()
    unified(X)
    assert torch.equal(before, unified.state_dict()["0.parametrizations.weight.0._u"]) is not train


# ---- what is matched (across the edge of a region: tests/passes/test_match.py)


def test_library_attention_within_a_region():
    def attend(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y = F.scaled_dot_product_attention(x, x, x)
        return m.conv(x) + y.to(x.dtype)

    unified = check(Model(attend), X)
    assert sorted(node.origin for node in unified.integrals.values()) == ["attention", "conv1d"]


def test_a_frozen_encoder():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.encoder(x)
            return self.head(h)

    for train in (False, True):
        assert check(Frozen(), torch.randn(2, 5, 8), train=train).integrals


# ---- networks of others


@pytest.mark.foreign
def test_rotary_positions_of_llama():
    """Computed under no_grad (in some versions also outside autocast)."""
    if not foreign.available("transformers"):
        pytest.skip("transformers is not installed")
    foreign.prepare("transformers")
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    torch.manual_seed(0)
    model = LlamaModel(config).eval()
    ids = torch.randint(64, (2, 7))
    unified = itnet.unify(model, {"input_ids": ids}, copy=True)
    turned = [line for line in unified.ir.splitlines() if " in no_grad" in line]
    assert any("cos(" in line for line in turned) and any("sin(" in line for line in turned)
    assert sum(node.origin == "attention" for node in unified.integrals.values()) == 2
    for ambient in AMBIENTS:
        with ambient():
            same(unified(input_ids=ids).last_hidden_state, model(input_ids=ids).last_hidden_state)
    with torch.autocast("cpu", torch.bfloat16):
        same(unified(input_ids=ids).last_hidden_state, model(input_ids=ids).last_hidden_state)
