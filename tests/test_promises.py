"""The promises of the design, on networks that nobody here wrote: same function, same checkpoint, nothing lost."""

import copy
import inspect
import io

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import itnet
from itnet_compiler.ir.attention import Attention
from itnet_compiler.unified import program_of
from tests import foreign


def tensors(value):
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def call(model, args, kwargs, seed=0):
    torch.manual_seed(seed)
    return tensors(model(*args, **kwargs))


def gradients(model, args, kwargs):
    model.zero_grad()
    outputs = [t for t in call(model, args, kwargs) if t.is_floating_point() and t.requires_grad]
    sum(t.pow(2).mean() for t in outputs).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same(first, second, unified=None, bound=1e-5):
    """Bit-equal; where ``unified`` runs other kernels, within ``bound`` as one vector (relative L2)."""
    assert len(first) == len(second)
    nodes = [] if unified is None else unified.integrals.values()
    others = any(isinstance(node.kernel, Attention) or node.plan.lowering != "library" for node in nodes)
    for a, b in zip(first, second, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if not others:
            torch.testing.assert_close(b, a, rtol=0, atol=0, equal_nan=True)
    if others and first:
        expected, found = (torch.cat([t.detach().double().flatten() for t in each]) for each in (first, second))
        assert torch.equal(expected.isnan(), found.isnan())
        assert float((expected - found).nan_to_num().norm() / expected.nan_to_num().norm()) <= bound


# Rounding of the forward pass, carried back through the network.
_GRADIENTS = 1e-3


def resize(value, rows):
    return pytree.tree_map(lambda t: t[rows] if isinstance(t, Tensor) and t.dim() else t, value)


@pytest.fixture(scope="module")
def built(request):
    """A network, unified once for all promises about it; pytest runs the tests of one network together."""
    if not foreign.available(foreign.group_of(request.param)):
        pytest.skip(f"{foreign.group_of(request.param)} is not installed")
    model, args, kwargs = foreign.build(request.param)
    return model, itnet.unify(model, args, example_kwargs=kwargs), args, kwargs


def each(names):
    params = [
        pytest.param(name, marks=[pytest.mark.foreign, *([] if name in foreign.OFTEN else [pytest.mark.exhaustive])])
        for name in names
    ]
    return pytest.mark.parametrize("built", params, indirect=True)


class Promises:
    """Those that every network is tested for."""

    def test_same_forward_and_gradients_in_eval_mode(self, built):
        model, unified, args, kwargs = built
        assert not program_of(unified).current.refused
        same(call(model, args, kwargs), call(unified, args, kwargs), unified)
        expected, found = gradients(model, args, kwargs), gradients(unified, args, kwargs)
        assert expected.keys() == found.keys()
        same(list(expected.values()), list(found.values()), unified, _GRADIENTS)

    def test_other_batch_sizes_run_the_same_graph(self, built):
        model, unified, args, kwargs = built
        before = len(program_of(unified).variants)
        for rows in ([0, 1, 0, 1, 0], [1]):
            other = resize((args, kwargs), rows)
            same(call(model, *other), call(unified, *other), unified)
        assert len(program_of(unified).variants) == before

    def test_same_checkpoint(self, built):
        model, unified, _, _ = built
        assert list(model.state_dict()) == list(unified.state_dict())
        assert all(a is b for a, b in zip(model.parameters(), unified.parameters(), strict=True))
        file = io.BytesIO()
        torch.save(unified.state_dict(), file)
        file.seek(0)
        model.load_state_dict(torch.load(file))
        unified.load_state_dict(model.state_dict())

    def test_same_training_step(self, built):
        model, _, args, kwargs = built
        first = copy.deepcopy(model)
        second = itnet.unify(model, args, example_kwargs=kwargs, copy=True)
        first.train(), second.train()
        same(call(first, args, kwargs), call(second, args, kwargs), second)
        same(list(first.buffers()), list(second.buffers()), second)
        expected, found = gradients(first, args, kwargs), gradients(second, args, kwargs)
        same(list(expected.values()), list(found.values()), second, _GRADIENTS)


@each(name for name in foreign.names() if name in foreign.THOROUGH)
class TestForeignNetworks(Promises):
    def test_same_forward_without_gradients(self, built):
        model, unified, args, kwargs = built
        with torch.no_grad():  # nn.Transformer* and MultiheadAttention take other kernels here
            same(call(model, args, kwargs), call(unified, args, kwargs), unified)

    def test_every_rewrite_is_verified(self, built):
        _, unified, _, _ = built
        assert unified.integrals
        for node in unified.integrals.values():
            assert node.verification.status == "verified" and node.verification.error < 1e-10
        assert not [e for e in program_of(unified).journal.entries if e.status == "rolled back"]

    def test_deepcopy_is_independent_and_equal(self, built):
        _, unified, args, kwargs = built
        twin = copy.deepcopy(unified)
        same(call(unified, args, kwargs), call(twin, args, kwargs))
        assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in unified.parameters())
        assert list(twin.integrals) == list(unified.integrals)

    def test_second_unify_changes_nothing(self, built):
        _, unified, args, kwargs = built
        before = len(program_of(unified).variants)
        assert itnet.unify(unified, args, example_kwargs=kwargs) is unified
        assert len(program_of(unified).variants) == before

    def test_still_the_users_module(self, built):
        model, unified, _, _ = built
        assert isinstance(unified, type(model)) and type(unified).__name__ == type(model).__name__
        assert inspect.signature(unified.forward) == inspect.signature(model.forward)
        assert repr(unified) == repr(model)
        assert [path for path, _ in model.named_modules()] == [path for path, _ in unified.named_modules()]


@each(name for name in foreign.names() if name not in foreign.THOROUGH)
class TestMoreNetworks(Promises):
    """No further promise: these are here for what they are made of."""


class Small(nn.Module):
    """Convolution, batch norm, dropout and attention, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(8, 5)

    def forward(self, x, scale=None):
        x = torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        x = self.drop(nn.functional.scaled_dot_product_attention(x, x, x)).mean(1)
        y = self.head(x)
        return y if scale is None else y * scale


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small().eval(), torch.randn(2, 3, 7, 6)


def test_unify_changes_nothing_in_the_original(small):
    model, x = small
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    state = {key: dict(value) if isinstance(value, dict) else value for key, value in model.__dict__.items()}
    unified = itnet.unify(model, x)
    unified.train()(x)
    unified.head = nn.Identity()
    assert [type(module) for module in model.modules()] == classes and not model.training
    assert {key: dict(value) if isinstance(value, dict) else value for key, value in model.__dict__.items()} == state
    unshared = [name for name in before if not name.startswith("norm.")]  # train mode writes the shared statistics
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in unshared)


def test_copy_shares_nothing(small):
    model, x = small
    unified = itnet.unify(model, x, copy=True)
    assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in unified.parameters())
    with torch.no_grad():
        unified.head.weight.zero_()
    assert bool(model.head.weight.any())


def test_dropout_draws_the_same_stream(small):
    model, x = small
    unified = itnet.unify(model, x, copy=True).train()
    model.train()
    for seed in range(3):
        same(call(model, (x,), {}, seed), call(unified, (x,), {}, seed))
    torch.manual_seed(1)
    assert not torch.equal(unified(x), unified(x))


def test_the_first_call_in_a_mode_counts_once_in_the_statistics(small):
    model, x = small
    twin = copy.deepcopy(model).train()
    unified = itnet.unify(model, x, copy=True).train()
    for _ in range(3):
        same([unified(x).detach() * 0], [twin(x).detach() * 0])
    assert int(unified.norm.num_batches_tracked) == 3
    same(list(twin.buffers()), list(unified.buffers()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_casting_works_as_on_the_original(small, dtype):
    model, x = small
    unified = itnet.unify(model, x, copy=True).to(dtype)
    same([copy.deepcopy(model).to(dtype)(x.to(dtype))], [unified(x.to(dtype))])
    assert all(not v.refused for v in program_of(unified).variants)


def test_autocast_works_as_on_the_original(small):
    model, x = small
    unified = itnet.unify(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = model(x), unified(x)
    assert expected.dtype is found.dtype
    same([expected], [found])


def test_replacing_a_part_takes_effect(small):
    model, x = small
    unified = itnet.unify(model, x)
    unified.head = nn.Linear(8, 3)
    assert unified(x).shape == (2, 3) and model(x).shape == (2, 5)
    unified.conv.weight = nn.Parameter(torch.zeros_like(unified.conv.weight))
    model.conv.weight, model.head = unified.conv.weight, unified.head
    same([model(x)], [unified(x)])


def test_hooks_below_the_root_fire(small):
    model, x = small
    unified = itnet.unify(model, x)
    seen = []
    unified.conv.register_forward_hook(lambda *_: seen.append(1))
    same([model(x)], [unified(x)])
    assert seen and any("hooks" in text for text in program_of(unified).fallbacks)


def test_another_signature_is_captured_when_it_first_occurs(small):
    model, x = small
    unified = itnet.unify(model, x)
    scale = torch.tensor(2.0)
    same([model(x, scale=scale)], [unified(x, scale=scale)])
    same([model(x, 0.5)], [unified(x, 0.5)])
    assert len(program_of(unified).variants) == 3


def test_inputs_that_do_not_fit_raise_as_the_original_does(small):
    model, x = small
    unified = itnet.unify(model, x)
    wrong = torch.randn(2, 4, 7, 6)
    with pytest.raises(RuntimeError) as expected:
        model(wrong)
    with pytest.raises(RuntimeError) as found:
        unified(wrong)
    assert str(expected.value) == str(found.value)
    same([model(x)], [unified(x)])
    assert not program_of(unified).fallbacks


def test_functional_call_sees_the_given_parameters(small):
    model, x = small
    unified = itnet.unify(model, x)
    doubled = {name: 2 * value for name, value in model.named_parameters()}
    same([torch.func.functional_call(model, doubled, (x,))], [torch.func.functional_call(unified, doubled, (x,))])


def test_pickled_as_the_original_class_and_unified_again(small):
    model, x = small
    file = io.BytesIO()
    torch.save(itnet.unify(model, x), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, Small) and isinstance(loaded, itnet.Unified)
    same([model(x)], [loaded(x)])


def test_compile_and_export_of_a_unified_model(small):
    model, x = small
    unified = itnet.unify(model, x)
    assert torch._dynamo.explain(unified)(x).graph_break_count == 0
    compiled = torch.compile(unified, backend="aot_eager", fullgraph=True)
    same([model(x)], [compiled(x)])
    same([model(x)], [torch.export.export(unified, (x,), strict=False).module()(x)])


def test_names_that_the_model_uses_stay_its_own():
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.report, self.graph = nn.Linear(2, 2), "mine"

        def reset(self):
            return "also mine"

        def forward(self, x):
            return self.report(x)

    model = Clash()
    unified = itnet.unify(model, torch.zeros(2, 2))
    assert unified.report is unified._modules["report"] and unified.graph == "mine" and unified.reset() == "also mine"
    assert unified.ir


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padded_rows_of_a_nested_encoder_stay_zero_without_gradients():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    unified = itnet.unify(model, x, example_kwargs={"src_key_padding_mask": mask})
    same([model(x, src_key_padding_mask=mask)], [unified(x, src_key_padding_mask=mask)])
    with torch.no_grad():
        same([model(x, src_key_padding_mask=mask)], [unified(x, src_key_padding_mask=mask)])
    assert any("zeroes padded positions" in text for text in program_of(unified).fallbacks)


def test_plain_attributes_that_are_changed_take_effect(small):
    model, x = small
    unified = itnet.unify(model, x, copy=True).train()
    model.train()
    for rate in (0.3, 0.0, 0.9):
        model.drop.p = unified.drop.p = rate
        same(call(model, (x,), {}), call(unified, (x,), {}))
    unified.norm.eps = model.norm.eps = 0.5
    same([model.eval()(x)], [unified.eval()(x)])


def test_attributes_that_forward_writes_are_written():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.calls = nn.Conv1d(3, 3, 3), 0

        def forward(self, x):
            self.calls += 1
            return self.conv(x) * self.calls

    model, x = Counts(), torch.randn(2, 3, 9)
    unified = itnet.unify(model, x)
    assert model.calls == unified.calls == 0 and list(unified.parts) == ["conv"]
    for _ in range(3):
        same([model(x)], [unified(x)])
    model.calls = unified.calls = 12
    same([model(x)], [unified(x)])
    twin = copy.deepcopy(unified)
    same([model(x)], [twin(x)])
    assert twin.calls == model.calls == 14 and unified.calls == 13
    assert len(program_of(unified.conv).variants) == len(program_of(twin.conv).variants) == 1
