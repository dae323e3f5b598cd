"""Dtypes, autocast, gradient scaling, inference mode, memory formats: what the original does, to the last bit."""

import copy

import pytest
import torch
from torch import nn

import itnet
from tests.foreign.from_torch import Recurrent
from tests.integration.tools import (
    call,
    ids,
    language_model,
    same,
    same_gradients,
    same_weights,
    stack,
    third_party,
    total,
)


def small_resnet():
    class Residual(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
            self.drop = nn.Dropout2d(0.3)

        def forward(self, x):
            return torch.relu(x + self.drop(self.norm(self.conv(x))))

    body = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), Residual(8), nn.MaxPool2d(2), Residual(8)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), torch.randn(3, 3, 20, 16)


def small_vit():
    timm = third_party("timm")
    rates = dict(drop_rate=0.1, attn_drop_rate=0.2, proj_drop_rate=0.1, drop_path_rate=0.2)
    size = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=5)
    return timm.models.VisionTransformer(**size, **rates), torch.randn(3, 3, 16, 16)


def small_bert():
    return language_model("bert"), ids(3, 7)


def small_lstm():
    return Recurrent(nn.LSTM, 12, 2, bidirectional=True, dropout=0.2), ids(3, 6)


MAKERS = {
    "resnet": small_resnet,
    "vit": pytest.param(small_vit, marks=pytest.mark.foreign),
    "bert": pytest.param(small_bert, marks=pytest.mark.foreign),
    "lstm": small_lstm,
}


@pytest.fixture(scope="module", params=list(MAKERS.values()), ids=list(MAKERS))
def built(request):
    torch.manual_seed(0)
    model, x = request.param()
    model.train()
    return model, itnet.unify(model, x, copy=True), x


@pytest.fixture
def pair(built):
    """The original and its unified copy in train mode, with dropout, to do anything with; and an input."""
    model, unified, x = built
    return copy.deepcopy(model), copy.deepcopy(unified), x


def cast(x, dtype):
    return x.to(dtype) if x.is_floating_point() else x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_cast_models(pair, dtype):
    original, unified, x = pair
    original.to(dtype), unified.to(dtype)
    assert {p.dtype for p in unified.parameters()} == {dtype}
    same(call(original, cast(x, dtype)), call(unified, cast(x, dtype)))
    same_gradients(original, unified, cast(x, dtype))
    same_weights(original, unified)
    with torch.no_grad():
        same(original.eval()(cast(x, dtype)), unified.eval()(cast(x, dtype)))


def test_half_and_back(pair):
    original, unified, x = pair
    original.bfloat16().float(), unified.bfloat16().float()
    same_gradients(original, unified, x)


def skip_unless_it_runs(model, x, dtype):
    """oneDNN has no float16 LSTM on most processors."""
    model = copy.deepcopy(model)
    try:
        with torch.autocast("cpu", dtype):
            total(model(x)).backward()
    except RuntimeError as error:
        pytest.skip(f"the original does not run: {error}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_around_forward_and_loss(pair, dtype):
    original, unified, x = pair
    skip_unless_it_runs(original, x, dtype)
    losses = []
    for model in (original, unified):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype):
            output = model(x)
            loss = total(output)
        loss.backward()
        losses.append((output, loss))
    same(*losses)
    same(*([p.grad for p in model.parameters() if p.grad is not None] for model in (original, unified)))
    same_gradients(original, unified, x)  # and without it again
    with torch.autocast("cpu", dtype), torch.autocast("cpu", enabled=False):
        same(call(original, x), call(unified, x))


def test_gradient_scaler(pair):
    original, unified, x = pair
    skip_unless_it_runs(original, x, torch.float16)
    scales = []
    for model in (original, unified):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=2)
        for step in range(4):
            torch.manual_seed(step)
            with torch.autocast("cpu", torch.float16):
                loss = total(model(x))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer), scaler.update(), optimizer.zero_grad()
            scales.append(scaler.get_scale())
    assert scales[:4] == scales[4:] and len(set(scales)) > 1
    same_weights(original, unified)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_without_gradients(pair, guard, train):
    original, unified, x = pair
    original.train(train), unified.train(train)
    with guard():
        expected, found = call(original, x), call(unified, x)
        same(expected, found)
    assert not any(t.requires_grad for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, torch.Tensor))
    same_weights(original, unified)  # the statistics of batch norm
    same_gradients(original, unified, x)  # nothing of inference mode stays behind


def test_default_dtype(pair):
    original, unified, x = pair
    torch.set_default_dtype(torch.float64)
    try:
        same(call(original, x), call(unified, x))
        original.double(), unified.double()
        same(call(original, cast(x, torch.float64)), call(unified, cast(x, torch.float64)))
    finally:
        torch.set_default_dtype(torch.float32)


def test_meta(pair):
    original, unified, x = pair
    expected, found = original.to("meta")(x.to("meta")), unified.to("meta")(x.to("meta"))
    shapes = [[t.shape for t in torch.utils._pytree.tree_leaves(out)] for out in (expected, found)]
    assert shapes[0] == shapes[1]


def test_the_random_stream_goes_on_alike(pair):
    original, unified, x = pair
    states = []
    for model in (original, unified):
        call(model, x, seed=5), model(x)
        states.append((torch.get_rng_state(), torch.rand(3)))
    same(*states)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_channels_last(train):
    torch.manual_seed(0)
    original, x = small_resnet()
    original.train(train).to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    before = itnet.unify(original, x.contiguous(), copy=True)
    for unified in (itnet.unify(original, x, copy=True), before):
        reference = copy.deepcopy(original)
        same(call(reference, x), call(unified, x))
        same_gradients(reference, unified, x)
        features = [call(lambda x, m=model: m[5](m[4](m[3](m[0](x)))), x) for model in (reference, unified)]
        same(*features)
        assert features[0].stride() == features[1].stride()
    later = itnet.unify(small_resnet()[0].train(train), x, copy=True)
    later.load_state_dict(original.state_dict())
    same(call(copy.deepcopy(original), x), call(later.to(memory_format=torch.channels_last), x))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_in_parts(dtype):
    original, x = stack(branching=True)
    unified = itnet.unify(original.train(), x, copy=True)
    same_gradients(original, unified, x)
    with torch.autocast("cpu", torch.bfloat16):
        same(call(original, x), call(unified, x))
    with torch.inference_mode():
        same(original.eval()(x), unified.eval()(x))
    original.train().to(dtype), unified.train().to(dtype)
    same_gradients(original, unified, x.to(dtype))
