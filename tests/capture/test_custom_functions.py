"""Custom autograd functions are kept as calls of themselves, so that their own backward is what runs."""

import copy

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.passes.custom import CustomCall

FACTOR = torch.tensor([2.0])


class Kept(torch.autograd.Function):
    """A forward that says nothing of the backward: the gradient is seven times what it would be."""

    @staticmethod
    def forward(ctx, x, *others):
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient, *others):
        return (7 * gradient, *[None] * (len(ctx.needs_input_grad) - 1))


class Pair(torch.autograd.Function):
    """New style, two results, one of them no function of positions alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, y, rate=0.5):
        return x * y, (x - y).flip(1) * rate

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.rate = inputs[2]

    @staticmethod
    def backward(ctx, first, second):
        x, y = ctx.saved_tensors
        return first * y + 3 * second, first * x - 3 * ctx.rate * second, None


class Noisy(Kept):
    @staticmethod
    def forward(ctx, x):
        return x + torch.rand_like(x)


class Reversed(Kept):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


alias = Kept.apply


class Applies(nn.Module):
    """Linear layers around a function of two tensors."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second, self.function = nn.Linear(6, 6), nn.Linear(6, 6), function

    def forward(self, x):
        result = self.function(self.first(x), self.second(x))
        return sum(result) if isinstance(result, tuple) else result


def custom(unified):
    return [node.target for node in unified.graph.nodes if isinstance(node.target, CustomCall)]


def results(net, x):
    net.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    out = net(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in net.parameters() if p.grad is not None)]


KEPT = {
    "old style": (lambda a, b: Kept.apply(a) * b, True),
    "an alias": (lambda a, b: alias(a) * b, True),
    "new style": (Pair.apply, False),
    "with a default given": (lambda a, b: Pair.apply(a, b, 0.25), False),
    "random": (lambda a, b: Noisy.apply(a) + b, True),
    "a view, of what is written after": (lambda a, b: Reversed.apply(a).detach() + a.mul_(b) + b, True),
    "containers, sizes and settings": (
        lambda a, b: Kept.apply(a, [b, (2.5, "text")], {"size": a.shape[0], "none": None}, a.dtype),
        True,
    ),
    "gradients off": (lambda a, b: torch.no_grad()(Kept.apply)(a) + b, True),
    "in a row": (lambda a, b: Kept.apply(Kept.apply(a)) + Reversed.apply(b), True),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_custom_function_is_kept_with_its_gradient(name):
    function, elementwise = KEPT[name]
    model = Applies(function)
    unified = itnet.unify(model, torch.randn(3, 6), copy=True)
    calls = custom(unified)
    assert calls and all(call.elementwise == elementwise for call in calls)
    assert all(call.random == (name == "random") for call in calls)
    for rows in (3, 1, 0, 7):
        x = torch.randn(rows, 6)
        for net in (unified, copy.deepcopy(unified)):
            torch.testing.assert_close(results(net, x), results(model, x), rtol=0, atol=0)
    assert not unified.report().to_dict()["left"] or not elementwise


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # which is what Dynamo does
def test_what_is_kept_can_be_compiled_cast_and_unified_again():
    model, x = Applies(KEPT["old style"][0]), torch.randn(3, 6)
    unified = itnet.unify(model, x)
    expected = results(model, x)
    torch.testing.assert_close(results(torch.compile(unified, backend="aot_eager", fullgraph=True), x), expected)
    torch.testing.assert_close(results(itnet.unify(unified, x), x), expected)
    for net in (model, unified):
        assert results(net.to(torch.bfloat16), x.bfloat16())[0].dtype is torch.bfloat16
    torch.testing.assert_close(results(unified, x.bfloat16()), results(model, x.bfloat16()), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(results(unified.float(), x), results(model.float(), x), rtol=0, atol=0)


def _closes_over_self():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            owner = self

            class Scales(Kept):
                @staticmethod
                def forward(ctx, x):
                    return x * owner.scale

            self.function = Scales

        def forward(self, x):
            return self.function.apply(x)

    return Model()


class Global(Kept):
    @staticmethod
    def forward(ctx, x):
        return x * FACTOR


class Writes(Kept):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)


class Decides(Kept):
    @staticmethod
    def forward(ctx, x):
        return x * 2 if x.sum() > 0 else x * 3


class Tells(Kept):
    @staticmethod
    def forward(ctx, x):
        return x * 2, "twice"


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        result = self.function(x + 0)
        return result[0] if isinstance(result, tuple) else result


def _defined_anew(x):
    rows = x.shape[0]

    class Divides(Kept):
        @staticmethod
        def forward(ctx, x):
            return x / rows

    return Divides.apply(x)


REFUSED = {
    "uses a tensor that is none of its arguments": Global.apply,
    "writes to its arguments": Writes.apply,
    "cannot be traced": Decides.apply,
    "returns something else than tensors": Tells.apply,
    "is defined anew in every call": _defined_anew,
    "takes an argument of type function": lambda x: Kept.apply(x, len.__call__ and (lambda: x)),
    "is called within vmap or grad": lambda x: torch.vmap(Pair.apply, in_dims=(0, None))(x, x),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_kept_runs_as_it_is(why):
    forward = Kept.__dict__["forward"]
    model = Calls(REFUSED[why])
    unified = itnet.unify(model, torch.randn(3, 6))
    left = unified.report().to_dict()["left"]
    assert why in "; ".join(left[0]["reasons"]) and "test_custom_functions.py" in "; ".join(left[0]["reasons"])
    assert Kept.__dict__["forward"] is forward
    for rows in (3, 5):
        x = torch.randn(rows, 6, requires_grad=True)
        outcomes = []
        for net in (model, unified):
            try:
                outcomes.append((net(x), torch.autograd.grad(net(x).square().sum(), x)[0]))
            except RuntimeError as error:
                outcomes.append(type(error))
        if isinstance(outcomes[0], tuple):
            torch.testing.assert_close(outcomes[1], outcomes[0], rtol=0, atol=0)
        else:
            assert outcomes[1] is outcomes[0]


class Mistaken(nn.Module):
    """Goes on after a call that no function takes."""

    def forward(self, x):
        try:
            return Pair.apply(x)
        except TypeError:
            return x + 1


def test_a_call_that_fails_leaves_the_function_as_it_was():
    forward = Pair.__dict__["forward"]
    unified, x = itnet.unify(Mistaken(), torch.randn(3, 6)), torch.randn(2, 6)
    assert Pair.__dict__["forward"] is forward
    assert torch.equal(unified(x), x + 1)


def test_a_function_that_closes_over_its_module_runs_as_it_is():
    model = _closes_over_self()
    unified = itnet.unify(model, torch.randn(3, 6))
    assert "none of its arguments" in "; ".join(unified.report().to_dict()["left"][0]["reasons"])
    x = torch.randn(3, 6)
    torch.testing.assert_close(results(unified, x), results(model, x), rtol=0, atol=0)
