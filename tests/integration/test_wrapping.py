"""What wraps models wraps unified ones: parallel training, sharding, checkpointing, compilation, averaging."""

import copy
import gc

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

import itnet
from tests.integration.tools import (
    Block,
    call,
    recomputed,
    same,
    same_gradients,
    same_weights,
    stack,
    total,
    train,
    trains_alike,
)

KINDS = {"whole": {}, "blocks": {"boundaries": "blocks"}, "parts": {}}


def make(kind):
    original, x = stack(branching=kind == "parts")
    original.train()
    unified = itnet.unify(original, x, copy=True, **KINDS[kind])
    if kind != "whole":
        assert {f"blocks.{i}" for i in range(2)} <= set(unified.parts)
    return original, unified, x


@pytest.fixture(scope="module", params=list(KINDS))
def built(request):
    return make(request.param)


@pytest.fixture
def models(built):
    original, unified, x = built
    return copy.deepcopy(original), copy.deepcopy(unified), x


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    file = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=file, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 7, 5, generator=generator), torch.randint(4, (4,), generator=generator)) for _ in range(3)]


def entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def alike(first, second, steps=6):
    same(train(first, entropy, batches(), sgd, steps=steps), train(second, entropy, batches(), sgd, steps=steps))


def test_data_parallel(models):
    original, unified, _ = models
    alike(nn.DataParallel(original), nn.DataParallel(unified))
    same_weights(original, unified)


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
def test_distributed_data_parallel(models, process_group, options):
    original, unified, _ = models
    wrap = nn.parallel.DistributedDataParallel
    first, second = wrap(original, **options), wrap(unified, **options)
    alike(first, second)
    with first.no_sync(), second.no_sync():
        same_gradients(first, second, batches()[0][0])
    same_weights(first, second)


def shard(model, mesh):
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("kind", ["blocks", "parts"])
def test_fully_sharded(kind, process_group):
    from torch.distributed.device_mesh import init_device_mesh

    original, unified, x = make(kind)
    mesh = init_device_mesh("cpu", (1,))
    first, second = shard(original, mesh), shard(unified, mesh)
    assert all(isinstance(p, torch.distributed.tensor.DTensor) for p in second.parameters())
    alike(first, second)
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    same({n: v.full_tensor() for n, v in ours.items()}, {n: v.full_tensor() for n, v in theirs.items()})
    with torch.no_grad():
        same(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize("before", [False, True], ids=["wrapped afterwards", "wrapped before"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_activation_checkpointing(kind, before):
    original, x = stack(branching=kind == "parts")
    wrapped = copy.deepcopy(original.train())
    if before:
        apply_activation_checkpointing(wrapped, checkpoint_wrapper, lambda module: isinstance(module, Block))
    unified = itnet.unify(wrapped, x, copy=True, **KINDS[kind])
    for model in (original, unified)[: 1 if before else 2]:
        apply_activation_checkpointing(model, checkpoint_wrapper, lambda module: isinstance(module, Block))
    same_gradients(original, unified, x)
    assert recomputed(unified, x) == recomputed(original, x) == 2
    alike(original, unified)
    same_weights(original, unified)


class Checkpointed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.model, x, use_reentrant=False)


def test_a_checkpoint_by_hand(models):
    original, unified, x = models
    x = x.clone().requires_grad_()
    found = []
    for model in (original, unified):
        loss = total(call(torch.utils.checkpoint.checkpoint, model, x, use_reentrant=False))
        found.append((loss, torch.autograd.grad(loss, [x, *model.parameters()])))
    same(*found)
    assert recomputed(Checkpointed(unified), x) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # after a break
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(models, backend):
    original, unified, x = models
    torch.compiler.reset()
    compiled = torch.compile(unified, backend=backend)
    same(original.eval()(x), compiled.eval()(x))
    alike(original, compiled)
    same_weights(original, unified)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_model(models, use_buffers):
    original, unified, x = models
    averages = []
    for model in (original, unified):
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=use_buffers)
        for batch in batches():
            train(model, entropy, [batch], sgd, steps=2)
            average.update_parameters(model)
        averages.append(average)
    same_weights(*averages)
    same(*(average.eval()(x) for average in averages))
    assert not torch.equal(averages[1].module(x), unified.eval()(x))


def test_moving_average_of_a_deepcopy(models):
    original, unified, x = models
    found = []
    for model in (original, unified):
        slow = copy.deepcopy(model).requires_grad_(False).eval()
        for batch in batches():
            train(model, entropy, [batch], sgd, steps=1)
            with torch.no_grad():
                for mine, theirs in zip(slow.parameters(), model.parameters(), strict=True):
                    mine.lerp_(theirs, 0.1)
        found.append(slow)
    same_weights(*found)
    same(*(slow(x) for slow in found))


def test_functional_call_and_transforms(models):
    original, unified, x = models
    original.eval(), unified.eval()
    doubled = {name: 2 * value.detach() for name, value in original.named_parameters()}
    same(*(torch.func.functional_call(model, doubled, (x,)) for model in (original, unified)))
    grads = [
        torch.func.grad(lambda weights, m=model: total(torch.func.functional_call(m, weights, (x,))))(doubled)
        for model in (original, unified)
    ]
    same(*grads)
    same(original(x), unified(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_per_sample_gradients():
    original, unified, x = make("whole")
    original.eval(), unified.eval()

    def per_sample(model):
        weights = {name: value.detach() for name, value in model.named_parameters()}

        def loss(weights, row):
            return torch.func.functional_call(model, weights, (row[None],)).pow(2).sum()

        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)

    expected, found = per_sample(original), per_sample(unified)
    for name in expected:
        torch.testing.assert_close(expected[name], found[name])


def test_jvp_and_hessian_vector_products(models):
    original, unified, x = models
    found = []
    for model in (original.eval(), unified.eval()):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            point = x.clone().requires_grad_()
            (first,) = torch.autograd.grad(total(model(point)), point, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), point)
        found.append((first, second))
    same(*found)


@pytest.mark.parametrize("kind", ["blocks", "parts"])
def test_a_model_in_parts_trains(kind):
    original, unified, _ = make(kind)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 4, 7, 5, generator=generator)
    data = [(x, (x.mean((1, 2)) > 0).long()) for x in inputs]
    trains_alike(original, unified, entropy, data, lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    assert set(unified.parts) and unified.integrals


def test_parts_are_the_modules_of_the_tree():
    _, unified, x = make("blocks")
    for path, part in unified.parts.items():
        assert unified.get_submodule(path) is part and isinstance(part, nn.Module)
    same(call(unified.blocks[0], unified.embed(x)), call(unified.parts["blocks.0"], unified.embed(x)))
    by_class, by_glob = (itnet.unify(stack()[0], x, boundaries=[which]) for which in (Block, "blocks.*"))
    assert set(by_class.parts) == set(by_glob.parts) == {f"blocks.{i}" for i in range(2)}
    assert not set(itnet.unify(stack()[0], x, boundaries="root").parts) - {""}


def test_a_slice_of_a_unified_sequence():
    """``nn.Sequential.__getitem__`` makes a new object of the sequence's class."""
    torch.manual_seed(0)
    original, x = nn.Sequential(nn.Conv1d(5, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)), torch.randn(2, 5, 9)
    unified = itnet.unify(original, x)
    same(original[:2](x), unified[:2](x))
    same(nn.Sequential(*list(original.children())[:-1])(x), nn.Sequential(*list(unified.children())[:-1])(x))


def test_nothing_of_the_eager_run_stays_alive():
    """Else memory is lost, and a parameter whose ``data`` changes its shape has old gradient functions."""

    def computed():
        gc.collect()
        return sum(type(thing) is torch.Tensor and thing.grad_fn is not None for thing in gc.get_objects())

    before = computed()
    unified = make("parts")[1]
    assert computed() == before and unified.parts


def test_hooks_on_blocks_fire():
    original, unified, x = make("blocks")
    seen = []
    for model in (original, unified):
        for block in model.blocks:
            block.register_forward_hook(lambda module, args, output: seen.append(output.shape) or output * 2)
            block.register_full_backward_hook(lambda module, grads, outputs: seen.append(grads[0].shape))
    same_gradients(original, unified, x)
    assert len(seen) == 8 and seen[:4] == seen[4:]
