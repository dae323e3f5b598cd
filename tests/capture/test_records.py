"""Objects that forward makes and returns are put together again from the tensors of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import itnet
from itnet_compiler.capture.records import Record, opened


@dataclass
class Result:
    logits: Tensor
    states: list[Tensor]
    length: int = 0
    extra: Any = None
    name: str = "result"


@dataclass(frozen=True, slots=True)
class Slotted:
    value: Tensor
    scale: float = 2.0


class Cache:
    def __init__(self, keys: Tensor) -> None:
        self.layers = {"0": [keys, keys]}
        self.ready = True

    def size(self) -> int:
        return self.layers["0"][0].shape[1]


class Copied(Cache):
    def __reduce__(self):
        raise AssertionError("says itself how it is copied")


class Net(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(4, 4), make
        self.kept = Cache(torch.zeros(1, 1))

    def forward(self, x: Tensor) -> Any:
        return self.make(self, self.linear(x))


def _nested(net, y):
    inner = Cache(y.relu())
    return {"first": (Result(y, [y + 1, y.exp()], y.shape[0], inner),), "again": inner}


@pytest.mark.parametrize(
    "make",
    [
        lambda net, y: Result(y, [y + 1, y.exp()], extra={"a": (y.sin(), None)}),
        lambda net, y: Slotted(y),
        lambda net, y: (y, Cache(y.tanh())),
        _nested,
    ],
    ids=["dataclass", "slots", "class", "nested"],
)
def test_objects_come_back(make):
    model, x = Net(make), torch.randn(3, 4)
    unified = itnet.unify(model, x)
    assert not unified.report().left()
    for given in (x, torch.randn(5, 4)):
        mine, theirs = unified(given), model(given)
        leaves, structure = pytree.tree_flatten(opened(theirs))
        found, same = pytree.tree_flatten(opened(mine))
        assert structure == same or "length" in str(structure)
        assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(found, leaves, strict=True))
    pytree.tree_leaves(opened(unified(x)))[0].sum().backward()
    assert model.linear.weight.grad is not None


def test_what_was_made_once_is_one_object():
    model, x = Net(_nested), torch.randn(3, 4)
    result = itnet.unify(model, x)(x)
    first = result["first"][0]
    assert type(first) is Result and type(first.extra) is Cache and first.length == 3
    assert first.extra.layers["0"][0] is first.extra.layers["0"][1]
    assert first.extra.size() == 4


def test_sizes_kept_in_an_object_are_those_of_the_call():
    model, x = Net(lambda net, y: Result(y, [], extra=(y.shape, y.shape[0]))), torch.randn(3, 4)
    unified = itnet.unify(model, x)
    assert not unified.report().left()
    for rows in (3, 5, 1, 0):
        extra = unified(torch.randn(rows, 4)).extra
        assert extra == (torch.Size([rows, 4]), rows) and type(extra[0]) is torch.Size


def test_text_made_of_sizes_runs_the_original():
    """While it is traced, a size is a symbol, and so is its text."""
    model = Net(lambda net, y: Result(y, [], name=f"{y.shape[0]} rows"))
    unified = itnet.unify(model, torch.randn(3, 4))
    assert [unified(torch.randn(rows, 4)).name for rows in (3, 5)] == ["3 rows", "5 rows"]
    assert unified.report().left()


def test_an_object_that_holds_itself():
    def make(net, y):
        result = Result(y, [])
        result.extra = {"me": result}
        return result

    model, x = Net(make), torch.randn(3, 4)
    result = itnet.unify(model, x)(x)
    assert result.extra["me"] is result and torch.equal(result.logits, model(x).logits)


def test_every_call_makes_its_own():
    model, x = Net(lambda net, y: Cache(y)), torch.randn(3, 4)
    unified = itnet.unify(model, x)
    one, two = unified(x), unified(x)
    one.ready = False
    assert one is not two and one.layers is not two.layers and two.ready


@pytest.mark.parametrize(
    "make",
    [lambda net, y: (y, net.kept), lambda net, y: (y, Copied(y)), lambda net, y: (y, object())],
    ids=["the module's own", "with its own way of copying", "without tensors"],
)
def test_objects_that_cannot_be_taken_apart_run_the_original(make):
    model, x = Net(make), torch.randn(3, 4)
    unified = itnet.unify(model, x)
    assert "cannot be taken apart" in "".join(unified.report().left())
    mine, theirs = unified(x), model(x)
    assert torch.equal(mine[0], theirs[0]) and type(mine[1]) is type(theirs[1])
    if theirs[1] is model.kept:
        assert mine[1] is unified.kept is model.kept


def test_a_record_is_opened_and_rebuilt():
    value = Result(torch.ones(2), [])
    value.states = [value.logits, torch.zeros(1)]
    leaves, structure = pytree.tree_flatten(opened([value, value, "text"]))
    assert [type(leaf) for leaf in leaves] == [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, str]
    again = pytree.tree_unflatten(leaves, structure)
    assert isinstance(opened(value), Record) and again[0].states[1] is leaves[2]


@pytest.mark.foreign
def test_a_decoder_with_its_cache():
    pytest.importorskip("transformers")
    from tests.foreign import prepare

    prepare("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, vocab_size=100, n_embd=32, n_head=4, bos_token_id=1, eos_token_id=2)
    model, ids = GPT2LMHeadModel(config).eval(), torch.randint(3, 100, (2, 9))
    unified = itnet.unify(model, {"input_ids": ids})
    assert len(unified.integrals) == 2 and not unified.report().left()
    with torch.no_grad():
        whole = unified(ids)
        first = unified(ids[:, :6])
        rest = unified(ids[:, 6:], past_key_values=first.past_key_values)
        torch.testing.assert_close(rest.logits, whole.logits[:, 6:])
        written = [net.generate(ids, max_new_tokens=4, do_sample=False) for net in (model, unified)]
    assert torch.equal(*written)
