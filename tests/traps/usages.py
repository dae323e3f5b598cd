"""What people do with a model after, and before, it is unified: hooks, swapped parts, copies of the call."""

import copy
import functools
import threading
import types
from collections import OrderedDict

import torch
from torch import nn

from .table import call, usage

G = torch.Generator().manual_seed(10)
X = torch.randn(4, 6, generator=G)


class Net(nn.Module):
    """Two linear layers around a norm and dropout, and two methods beside forward."""

    def __init__(self):
        super().__init__()
        self.fc, self.body = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.norm, self.drop, self.head = nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 2)

    def encode(self, x):
        return self.norm(self.body(self.fc(x)))

    def decode(self, z):
        return self.head(self.drop(z.relu()))

    def forward(self, x, scale=None):
        x = self.decode(self.encode(x))
        return x if scale is None else x * scale


class Branching(Net):
    """The same with a branch on a value, so that only parts of it are captured."""

    def forward(self, x, scale=None):
        z = self.encode(x)
        return self.decode(z) if z.sum() > 1e9 else self.decode(-z)


def both(*example):
    """Register a usage with a model that is captured whole and with one that is captured in parts."""

    def register(function):
        for make, what in ((Net, "whole"), (Branching, "parts")):
            twin = types.FunctionType(function.__code__, function.__globals__, f"{function.__name__}_{what}")
            twin.__doc__ = function.__doc__
            usage(make, *(example or (X,)))(twin)
        return function

    return register


def seen_by(seen, name, result=None):
    """A hook that notes what it is given, apart from the module."""

    def hook(module, *given, **named):
        seen.append((name, type(module).__name__, [copy.copy(g) for g in given], named))
        return result

    return hook


@both()
def hooks_on_root_and_child(model):
    """Forward hooks fire as often, with the same values, registered before or after."""
    seen = []
    model.register_forward_hook(seen_by(seen, "root, before"))
    model.fc.register_forward_pre_hook(seen_by(seen, "child, before"))
    model = yield
    seen.clear()
    model.register_forward_pre_hook(seen_by(seen, "root, after"))
    model.head.register_forward_hook(seen_by(seen, "child, after"))
    model.body[0].register_forward_hook(seen_by(seen, "in a part"))
    return model(X), model(X), seen


@both()
def hooks_with_keywords(model):
    """Hooks that are given keyword arguments get those of the call."""
    seen = []
    model = yield
    model.register_forward_hook(seen_by(seen, "hook"), with_kwargs=True)
    model.register_forward_pre_hook(seen_by(seen, "pre"), with_kwargs=True)
    model.fc.register_forward_hook(seen_by(seen, "fc"), with_kwargs=True)
    return model(X, scale=torch.tensor(2.0)), model(x=X), seen


@both()
def hooks_that_change_values(model):
    """What a hook returns replaces the input or the output."""
    model.fc.register_forward_hook(lambda module, args, output: output * 2)
    model = yield
    model.register_forward_hook(lambda module, args, output: (output, 1))
    model.head.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model(X)


@both()
def hooks_removed(model):
    """After a hook is gone the model is what it was."""
    seen = []
    before = model.fc.register_forward_hook(seen_by(seen, "before"))
    model = yield
    handle = model.head.register_forward_hook(seen_by(seen, "after"))
    first = model(X)
    handle.remove()
    seen.clear()
    result = model(X), first, len(seen)
    before.remove()
    return result


class Watched(Net):
    """Registers a hook on itself, keeps the handle, and takes it away when asked."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.handle = self.fc.register_forward_hook(self.note)

    def note(self, module, args, output):
        self.calls.append(float(output.detach().sum()))


@usage(Watched, X)
def handle_kept_on_the_model(model):
    """The handle of the unified model removes the hook of the unified model."""
    original = model
    model = yield
    model.calls.clear()
    first = model(X)
    model.handle.remove()
    kept = 1 if model is original else len(original.fc._forward_hooks)
    return first, model(X), model.calls, len(model.fc._forward_hooks), kept


@both()
def backward_hooks(model):
    """Full backward hooks fire with the same gradients, and may change them."""
    seen = []
    model.fc.register_full_backward_hook(seen_by(seen, "before"))
    model = yield
    seen.clear()
    model.head.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 2,))
    model.norm.register_full_backward_pre_hook(seen_by(seen, "pre"))
    model.register_full_backward_hook(seen_by(seen, "root"))
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    return x.grad, [p.grad for p in model.parameters()], seen


@both()
def global_hooks(model):
    """Hooks on all modules fire for every module."""
    seen = []
    model = yield
    handle = nn.modules.module.register_module_forward_hook(seen_by(seen, "any"))
    try:
        return model(X), [entry[1] for entry in seen]
    finally:
        handle.remove()


@both()
def activations_by_hooks(model):
    """Features of several layers collected as torchvision's feature extractors and Captum do."""
    model = yield
    features = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: features.__setitem__(name, o))
    return model(X), features


@both()
def forward_replaced_before(model):
    """A forward put on the instance and on a child, before."""
    model.forward = functools.partial(Net.forward, model, scale=torch.tensor(3.0))
    model.head.forward = types.MethodType(lambda self, x: x * 2, model.head)
    model = yield
    return model(X)


@both()
def forward_replaced_after(model):
    """A forward put on the instance and on a child, after, and taken away again."""
    before = model(X)
    head = model.head.forward
    model.head.forward = lambda x: head(x) + 1
    second = model(X)
    model.forward = lambda x: x.sum()
    third = model(X)
    del model.forward, model.head.forward
    model.body[1].forward = lambda x: x
    return before, second, third, model(X)


@both()
def other_methods(model):
    """Methods other than forward work, before and after a call."""
    first = model.encode(X)
    return first, model(X), model.decode(first), model.fc(X)


@both()
def replaced_child(model):
    """Another module in the place of one takes effect; so does its removal."""
    before = model(X)
    model.head = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    second = model(X)
    model._modules["norm"] = nn.Identity()
    setattr(model, "fc", nn.Identity())  # noqa: B010
    model.body[0] = nn.Identity()
    return before, second, model(X), list(model.state_dict())


@both()
def wrapped_child(model):
    """A low-rank adapter put around a layer, as PEFT does."""

    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down, self.up = base, nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    before = model(X)
    model.fc = Adapter(model.fc)
    output = model(X)
    output.sum().backward()
    return before, output, {name: p.grad for name, p in model.named_parameters()}


@both()
def added_child(model):
    """A module added afterwards is there, and harmless until it is used."""
    model.extra = nn.Linear(6, 6)
    model.fc.register_buffer("note", torch.zeros(2))
    return model(X), list(model.state_dict()), sum(p.numel() for p in model.parameters())


@both()
def replaced_parameter(model):
    """Another parameter, and none, in the place of one."""
    before = model(X)
    model.head.weight = nn.Parameter(torch.ones(3, 6))
    model.head.bias = None
    model.norm.running_mean = torch.ones(6)
    model.body[0].weight = nn.Parameter(torch.eye(6))
    output = model(X)
    output.sum().backward()
    return before, output, model.head.weight.grad, model.fc.weight.grad


@both()
def changed_data(model):
    """Values changed in place, through .data, and data swapped."""
    with torch.no_grad():
        model.fc.weight.mul_(2)
        model.body[0].weight.mul_(3)
    first = model(X)
    model.head.weight.data = torch.ones(2, 6)
    model.fc.bias.data.zero_()
    second = model(X)
    nn.init.constant_(model.fc.weight, 0.1)
    return first, second, model(X)


@both()
def unfrozen_later(model):
    """Parameters without gradients, then with."""
    model.requires_grad_(False)
    model = yield
    first = model(X)
    model.head.requires_grad_(True)
    model(X).sum().backward()
    model.fc.weight.requires_grad_(True)
    model(X).sum().backward()
    return first, {name: p.grad for name, p in model.named_parameters()}


@both()
def loaded_checkpoint(model):
    """A checkpoint loaded in place and one that is assigned."""
    state = {k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    first = model(X)
    model.load_state_dict(OrderedDict((k, v.clone() * 0.5) for k, v in state.items()), assign=True)
    return first, model(X)


@both()
def one_child_in_train_mode(model):
    """Modes that differ below the root; rates changed between calls."""
    model.drop.train()
    torch.manual_seed(3)
    first = model(X)
    model.drop.p = 0.9
    second = model(X)
    model.norm.train()
    model.norm.momentum = 0.5
    return first, second, model(X), model.norm.running_mean


@both()
def called_from_threads(model):
    """Several threads at once, in a mode and at a size not captured yet."""
    results = [None] * 4

    def work(index):
        with torch.no_grad():
            for size in (4, 2, 3):
                results[index] = model(X[:size] * index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    return results


@both()
def inside_another_model(model):
    """A unified model as a part of a larger one, which has hooks, modes and a state dict of its own."""
    whole = nn.Sequential(nn.Linear(6, 6), model, nn.Tanh())
    whole.train()
    torch.manual_seed(5)
    output = whole(X)
    output.sum().backward()
    return output, list(whole.state_dict()), [p.grad for p in whole.parameters()], copy.deepcopy(whole)(X)


@both(call(X, scale=2.0))
def defined_locally(model):
    """Whether it is pickled or not, a model of a local class works."""

    class Local(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) * 2

    return Local(model)(X), copy.deepcopy(model)(X)
