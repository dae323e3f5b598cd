"""Every trap through every promise: the original and the unified model, side by side, must be indistinguishable."""

import copy
import inspect
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import itnet
from itnet_compiler.unified import program_of
from tests.traps import TRAPS, USAGES
from tests.traps.compare import random_states, same, seed
from tests.traps.usages import Branching, Net, X

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm|deprecated|non-writable|Lazy modules).*"),
    pytest.mark.filterwarnings("ignore:.*(use_reentrant|requires_grad=True|lr_scheduler|full backward hook).*"),
    pytest.mark.filterwarnings("ignore:.*(Casting complex|ComplexHalf|vmap|retain_grad|inference tensor).*"),
]


def _some(table):
    """Two of three; the others are tested in make test-all."""
    return [
        trap if number % 3 else pytest.param(trap, marks=pytest.mark.exhaustive)
        for number, trap in enumerate(table.values())
    ]


@pytest.fixture(params=_some(TRAPS), ids=str)
def trap(request):
    return request.param


@pytest.fixture(params=_some(USAGES), ids=str)
def case(request):
    return request.param


def unify(model, example, **options):
    args, kwargs = copy.deepcopy((example.args, example.kwargs))
    return itnet.unify(model, args, example_kwargs=kwargs, **options)


def captured(unified):
    """What was made of a model: ``whole``, ``parts`` or ``python``."""
    if unified is not None and getattr(unified, "parts", None):
        return "parts"
    variants = program_of(unified).variants
    return "whole" if variants and not program_of(unified).current.refused else "python"


def build(trap, training):
    seed(0)
    model = trap.make()
    return model.train(training) if training != model.training else model


def pair(trap, training=False):
    """The original and the unified model, which share nothing."""
    return build(trap, training), unify(build(trap, training), trap.calls[0])


def given(call, cast=None, grad=False, writes=False):
    """Copies of the arguments of a call, and the tensors among them that gradients are asked of."""
    arguments, leaves = copy.deepcopy((call.args, call.kwargs)), []

    def prepare(value):
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        value = value.to(cast) if cast is not None and value.is_floating_point() else value
        if not grad or value.requires_grad:
            return value
        leaves.append(value.requires_grad_())
        return value.clone() if writes else value

    return *pytree.tree_map(prepare, arguments), leaves


def backward(output):
    """Gradients of every differentiable output, with weights of their own."""
    outputs = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad and t.grad_fn]
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in outputs]
    if outputs:
        torch.autograd.backward(outputs, weights)


def observe(model, calls, *, errors=False, grad=False, writes=False, cast=None, start=0):
    """Everything that can be seen of a number of calls: outputs, inputs, the model and the generators after them."""
    seen = []
    for number, call in enumerate(calls):
        args, kwargs, leaves = given(call, cast, grad, writes)
        seed(start + number)
        try:
            output = model(*args, **kwargs)
            output = list(output) if isinstance(output, Iterator) else output
            states = random_states()
            if grad:
                backward(output)
        except Exception as error:
            if not errors:
                raise
            output, states = f"{type(error).__name__}: {str(error)[:60]}", None
        seen.append({"arguments": (args, kwargs), "output": output, "leaves": leaves, "random": states})
    return {"calls": seen, "model": model}


def alike(model, unified, calls, **options):
    expected = observe(model, calls, **options)
    same(expected, observe(unified, calls, **options))


def test_eval_then_train_then_other_dtypes(trap):
    """One pair through what a model goes through; each call is compared with everything it leaves behind."""
    model, unified = pair(trap)
    both = {"grad": trap.grad, "writes": trap.writes}
    alike(model, unified, trap.calls, **both)
    if trap.train:
        alike(model.train(), unified.train(), trap.calls, start=10, **both)
    with torch.no_grad():
        alike(model.eval(), unified.eval(), trap.calls[:2], start=20)
    for dtype in (torch.float64, torch.bfloat16) if trap.casts else ():
        alike(model.to(dtype), unified.to(dtype), trap.calls[:1], cast=dtype, errors=True, start=30)


@pytest.mark.exhaustive
def test_train_first(trap):
    if not trap.train:
        pytest.skip("there is no train mode")
    model, unified = pair(trap, training=True)
    alike(model, unified, trap.calls, grad=trap.grad, writes=trap.writes)
    with torch.no_grad():
        alike(model.eval(), unified.eval(), trap.calls[:2], start=10)
    alike(model.train(), unified.train(), trap.calls[:2], start=20)


@pytest.mark.exhaustive
def test_without_gradients_first(trap):
    model, unified = pair(trap)
    with torch.no_grad():
        alike(model, unified, trap.calls)


@pytest.mark.exhaustive
def test_inference_mode(trap):
    model, unified = pair(trap)
    with torch.inference_mode():
        alike(model, unified, trap.calls, errors=True)


@pytest.mark.exhaustive
def test_copies(trap):
    """A second unify, a deep copy, a pickle: each goes on where the model was."""
    model, unified = pair(trap)
    with torch.no_grad():
        alike(model, unified, trap.calls[:2])
        again = unify(unified, trap.calls[0])
        assert again is unified
        alike(model, again, trap.calls[:1], start=5)
        twin = copy.deepcopy(unified)
        assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in unified.parameters())
        first, file = copy.deepcopy(model), io.BytesIO()
        alike(first, twin, trap.calls[:2], start=6)
        if trap.pickles:
            torch.save(unified, file)
            file.seek(0)
            alike(model, torch.load(file, weights_only=False), trap.calls[:2], start=8)


def test_the_original_is_untouched_and_the_result_is_its_own(trap):
    model, example = build(trap, False), copy.deepcopy(trap.calls[0])
    before, places = build(trap, False), _places(model)
    names, tensors = list(model.state_dict()), [*model.parameters(), *model.buffers()]
    seed(3)
    states = random_states()
    unified = itnet.unify(model, example.args, example_kwargs=example.kwargs)
    same(states, random_states(), "generators")
    same((trap.calls[0].args, trap.calls[0].kwargs), (example.args, example.kwargs), "example")
    assert _places(model) == places
    same(before, model, "original")
    lazy = any(isinstance(tensor, nn.parameter.UninitializedTensorMixin) for tensor in tensors)
    assert lazy or [id(t) for t in (*unified.parameters(), *unified.buffers())] == [id(t) for t in tensors]
    assert list(unified.state_dict()) == names and isinstance(unified, type(model)) and repr(unified) == repr(model)
    assert inspect.signature(unified.forward) == inspect.signature(model.forward)
    _is_captured(unified, trap.expect, trap.parts)


def _places(model):
    """Which object every attribute of every module holds."""
    return {
        (path, kind, key): id(value)
        for path, module in model.named_modules(remove_duplicate=False)
        for kind, store in (("", module.__dict__), *((k, module.__dict__[k]) for k in ("_parameters", "_buffers")))
        for key, value in store.items()
    }


def _is_captured(unified, wanted, parts):
    if wanted != "any":
        assert captured(unified) == wanted
    if wanted == "parts":
        assert set(parts) <= set(unified.parts), f"captured: {list(unified.parts)}"
    assert str(unified) and str(unified.report())


@pytest.mark.parametrize(
    "trap", [trap for trap in TRAPS.values() if trap.train and trap.training != trap.expect], ids=str
)
def test_what_is_captured_in_train_mode(trap):
    _is_captured(unify(build(trap, True), trap.calls[0], verify=False), trap.training, trap.parts)


@pytest.mark.parametrize(("make", "wanted"), [(Net, "whole"), (Branching, "parts")])
def test_usages_are_of_a_whole_and_of_parts(make, wanted):
    unified = itnet.unify(make().eval(), X)
    assert captured(unified) == wanted
    assert wanted == "whole" or "body" in unified.parts


def test_usage(case):
    """What people do with a model gives the same results with the unified one."""
    expected, found = _use(case, lambda model: model), _use(case, lambda model: unify(model, case.example))
    same(expected, found)


def _use(case, prepare):
    seed(0)
    model = case.make().eval()
    if not inspect.isgeneratorfunction(case.run):
        return case.run(prepare(model))
    running = case.run(model)
    next(running)
    seed(1)
    try:
        running.send(prepare(model))
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a usage yields once")
