"""Models of timm keep timm's face: configurations, features, new classifiers, checkpointing, other image sizes."""

import copy

import pytest
import torch
from torch import nn

import itnet
from tests.integration.tools import (
    gradients,
    ids,
    language_model,
    recomputed,
    same,
    same_gradients,
    same_weights,
    third_party,
    through_graphs,
)

pytestmark = [pytest.mark.foreign]

SMALL = {
    "resnet10t": dict(),
    "vit_tiny_patch16_224": dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3),
    "convnext_atto": dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
}
IMAGES = {"resnet10t": 48, "vit_tiny_patch16_224": 32, "convnext_atto": 64}


def make(name, **options):
    timm = third_party("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7, **SMALL[name], **options).eval()
    return model, torch.randn(2, 3, IMAGES[name], IMAGES[name])


@pytest.fixture(scope="module", params=list(SMALL))
def models(request):
    """The original, its unified copy and images; tests that change them take a copy."""
    model, images = make(request.param)
    return model, itnet.unify(model, images, copy=True), images


@pytest.fixture
def fresh(models):
    original, unified, images = models
    return copy.deepcopy(original), copy.deepcopy(unified), images


def test_configurations(models):
    original, unified, images = models
    assert unified.default_cfg is original.default_cfg or unified.default_cfg == original.default_cfg
    assert unified.pretrained_cfg == original.pretrained_cfg
    timm = third_party("timm")
    assert timm.data.resolve_model_data_config(unified) == timm.data.resolve_model_data_config(original)
    assert unified.num_classes == 7 and unified.num_features == original.num_features
    assert unified.no_weight_decay() == original.no_weight_decay() if hasattr(original, "no_weight_decay") else True
    assert itnet.unify(original)(images).shape == (2, 7), "the example is inferred from the configuration"


def test_features_and_head(models):
    original, unified, images = models
    same(original.forward_features(images), unified.forward_features(images))
    features = original.forward_features(images)
    for options in ({}, {"pre_logits": True}):
        same(original.forward_head(features, **options), unified.forward_head(features, **options))
    same(original(images), unified.forward_head(unified.forward_features(images)))


def test_intermediate_features(models):
    original, unified, images = models
    for options in ({}, {"indices": 2}, {"intermediates_only": True}, {"output_fmt": "NCHW", "norm": False}):
        same(original.forward_intermediates(images, **options), unified.forward_intermediates(images, **options))
    if hasattr(original, "get_intermediate_layers"):
        layers = dict(n=[0, 2], return_prefix_tokens=True, reshape=True, norm=True)
        same(original.get_intermediate_layers(images, **layers), unified.get_intermediate_layers(images, **layers))


@pytest.mark.slow
def test_another_number_of_classes(fresh):
    original, unified, images = fresh
    for classes in (3, 0, 4):
        for model in (original, unified):
            torch.manual_seed(classes)
            model.reset_classifier(classes)
        assert classes == 0 or unified(images).shape == (2, classes)
        same(original(images), unified(images))
    assert unified.num_classes == 4 and unified.get_classifier().weight.shape[0] == 4
    same_weights(original, unified)
    same_gradients(original, unified, images)
    assert any(unified.get_classifier() is module for module in unified.modules())


def test_drop_rates_changed_afterwards(fresh):
    original, unified, images = fresh
    for model in (original, unified):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.4
    same_gradients(original, unified, images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "when"),
    [("vit_tiny_patch16_224", "before"), ("vit_tiny_patch16_224", "afterwards"), ("convnext_atto", "before")],
)
def test_gradient_checkpointing(name, when):
    original, images = make(name, drop_path_rate=0.2)
    original.train().set_grad_checkpointing(when == "before")
    unified = itnet.unify(original, images, copy=True)
    original.set_grad_checkpointing(), unified.set_grad_checkpointing()
    same_gradients(original, unified, images)
    assert recomputed(unified, images) == recomputed(original, images) > 0
    unified.set_grad_checkpointing(False)
    assert recomputed(unified, images) == 0


def test_another_image_size():
    original, images = make("vit_tiny_patch16_224")
    unified = itnet.unify(original, images, copy=True)
    larger = torch.randn(2, 3, 48, 40)
    with pytest.raises(AssertionError, match="doesn't match model"):
        unified(larger)
    for model in (original, unified):
        model.set_input_size((48, 40))
    same(original(larger), unified(larger))
    same_weights(original, unified)
    for model in (original, unified):
        model.set_input_size(img_size=(32, 32), patch_size=(16, 16))
    same(original(images), unified(images))
    same_gradients(original, unified, images)


def test_dynamic_image_sizes():
    original, images = make("vit_tiny_patch16_224", dynamic_img_size=True)
    unified = itnet.unify(original, images, copy=True)
    for size in ((32, 32), (40, 24), (64, 48)):
        other = torch.randn(3, 3, *size)
        same(original(other), unified(other))


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "bert"])
def test_a_new_head_takes_effect(name):
    if name == "bert":
        original, given, head = language_model("bert"), ids(), "classifier"
        unified = itnet.unify(original, (), example_kwargs={"input_ids": given}, copy=True)
    else:
        original, given = make(name)
        unified, head = itnet.unify(original, given, copy=True), "fc" if name == "resnet10t" else "head"
    new = nn.Linear(getattr(original, head).in_features, 11)
    setattr(unified, head, new)
    setattr(original, head, copy.deepcopy(new))
    if name == "bert":
        original, unified = _logits(original), _logits(unified)
    assert unified(given).shape == (2, 11)
    same(original(given), unified(given))
    for parameter in (*original.parameters(), *unified.parameters()):
        parameter.requires_grad_(parameter.shape[:1] == (11,))
    same_gradients(original, unified, given)
    assert len(gradients(unified, given)) == 2, "the new head alone is trained"


def _logits(model):
    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model(tokens).logits

    return Logits()


def test_the_new_head_is_captured_too(fresh):
    _, unified, images = fresh
    unified.reset_classifier(3)
    unified(images)
    assert through_graphs(unified) and unified.integrals
