"""The shallow clone: new modules, shared tensors, references inside the tree translated."""

import functools

import torch
from torch import nn

import itnet
from itnet_compiler.capture.clone import deep_clone, shallow_clone


class Referring(nn.Module):
    """Keeps references to its parts in every kind of plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.as_list = [self.a, self.b]
        self.as_dict = {"a": self.a}
        self.as_tuple = (self.a, 1)
        self.method = self.a.forward
        self.partial = functools.partial(self._apply_layer, self.b)
        self.config = object()
        self.a.shared_log = self.b.shared_log = []

    def _apply_layer(self, layer, x):
        return layer(x)

    def forward(self, x):
        self.a.shared_log.append(1)
        return self.partial(self.method(x))


def test_tensors_are_shared_and_modules_are_new():
    model = Referring()
    clone = shallow_clone(model)
    assert clone is not model and type(clone) is type(model)
    for (name, parameter), (other_name, other) in zip(model.named_parameters(), clone.named_parameters(), strict=True):
        assert name == other_name and parameter is other
    assert {id(m) for m in model.modules()}.isdisjoint(id(m) for m in clone.modules())
    assert clone.b.weight is clone.a.weight
    assert clone.config is model.config


def test_references_point_into_the_clone():
    model = Referring()
    clone = shallow_clone(model)
    assert clone.as_list[0] is clone.a and clone.as_list is not model.as_list
    assert clone.as_dict["a"] is clone.a and clone.as_tuple[0] is clone.a
    assert clone.method.__self__ is clone.a
    assert clone.partial.args[0] is clone.b and clone.partial.func.__self__ is clone


def test_containers_shared_between_modules_stay_shared_within_the_clone():
    model = Referring()
    clone = shallow_clone(model)
    assert clone.a.shared_log is clone.b.shared_log and clone.a.shared_log is not model.a.shared_log
    clone(torch.zeros(1, 3))
    assert model.a.shared_log == []


def test_replacing_a_part_leaves_the_original_alone():
    model = Referring()
    clone = shallow_clone(model)
    kept = model.a
    clone.a = nn.Linear(3, 5)
    clone.register_buffer("extra", torch.zeros(1))
    assert model.a is kept and "extra" not in dict(model.named_buffers())


def test_a_module_called_under_two_names_stays_one():
    layer = nn.Linear(2, 2)
    clone = shallow_clone(nn.Sequential(layer, nn.ReLU(), layer))
    assert clone[0] is clone[2]


def test_flat_weights_of_a_recurrent_layer_are_the_parameters():
    clone = shallow_clone(nn.LSTM(2, 3))
    assert all(a is b for a, b in zip(clone._flat_weights, clone.parameters(), strict=True))


class Caching(nn.Module):
    """Keeps what it computed from a parameter, as LeViT keeps its attention biases in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.scale = nn.Parameter(torch.randn(3)), nn.Linear(3, 3)
        self.cache = {}

    def forward(self, x):
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias * 2
        return self.scale(x) + self.cache["bias"]


def test_a_deep_clone_takes_computed_tensors_without_their_graph():
    model, x = Caching().eval(), torch.randn(2, 3)
    expected = model(x)
    assert model.cache["bias"].grad_fn is not None
    clone = deep_clone(model)
    assert not clone.cache["bias"].requires_grad and clone.cache["bias"] is not model.cache["bias"]
    assert model.cache["bias"].grad_fn is not None
    assert torch.equal(clone(x), expected)
    assert {id(p) for p in clone.parameters()}.isdisjoint(id(p) for p in model.parameters())


def test_unify_copies_a_model_that_has_run():
    model, x = Caching().eval(), torch.randn(2, 3)
    model(x)
    unified = itnet.unify(model, x, copy=True)
    assert torch.equal(unified(x), model(x))
    model.cache.clear()
    with torch.no_grad():
        model.bias.add_(1.0)
    assert not torch.equal(unified(x), model(x))  # it has a cache and parameters of its own
