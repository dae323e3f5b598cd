"""Fifty steps of training: the unified model learns exactly what the original learns."""

import argparse
import copy
import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import itnet
from tests.foreign.from_torch import Recurrent
from tests.integration.tools import ids, language_model, third_party, through_graphs, trains_alike


def draws(count, rows, size):
    """Rows of each batch, the same every time."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, size, (rows,), generator=generator) for _ in range(count)]


def entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


@pytest.fixture(scope="module")
def digits():
    datasets = third_party("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    return [(images[rows], labels[rows]) for rows in draws(20, 32, len(images))]


@pytest.mark.foreign
def test_convolutions_with_batch_norm_dropout_and_stochastic_depth(digits):
    ops = third_party("torchvision.ops")

    class Residual(nn.Module):
        def __init__(self, width, rate):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
            self.depth = ops.StochasticDepth(rate, "row")

        def forward(self, x):
            return x + self.depth(torch.relu(self.norm(self.conv(x))))

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Residual(16, 0.2), nn.MaxPool2d(2),
        Residual(16, 0.4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 10),
    ).train()  # fmt: skip
    unified = itnet.unify(model, digits[0][0], copy=True)
    momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=50)
    trains_alike(model, unified, entropy, digits, momentum, schedule=cycle)
    assert through_graphs(unified)


@pytest.mark.foreign
def test_vision_transformer(digits):
    timm = third_party("timm")
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2,
        drop_rate=0.1, pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.1,
    ).train()  # fmt: skip
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.xavier_uniform_(parameter)  # timm's small values take longer than 50 steps to wake up
    nn.init.normal_(model.pos_embed, std=0.3)
    unified = itnet.unify(model, digits[0][0], copy=True)
    adam = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.05)
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=50)
    trains_alike(model, unified, entropy, digits, adam, schedule=cosine, clip=1.0)
    assert through_graphs(unified)


@pytest.mark.slow
@pytest.mark.foreign
def test_language_model_with_gradient_accumulation():
    text = torch.tensor(list(Path(inspect.getsourcefile(argparse)).read_bytes()))
    batches = [torch.stack([text[at : at + 32] for at in rows]) for rows in draws(40, 8, len(text) - 32)]
    model = language_model("gpt2", vocab_size=256, use_cache=False).train()
    unified = itnet.unify(model, (), example_kwargs={"input_ids": batches[0], "labels": batches[0]}, copy=True)

    def loss_of(model, batch):
        return model(input_ids=batch, labels=batch).loss

    warm = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: min(1.0, (step + 1) / 10))
    adam = partial(torch.optim.AdamW, lr=5e-3, betas=(0.9, 0.95))
    trains_alike(model, unified, loss_of, batches, adam, schedule=warm, accumulate=2, clip=1.0)
    assert through_graphs(unified)


def test_bidirectional_tagger():
    torch.manual_seed(0)
    model, tokens = Recurrent(nn.LSTM, 24, 2, bidirectional=True, dropout=0.2).train(), ids(64, 12)
    tags = (tokens + tokens.roll(1, 1)) % 5  # depends on a neighbour
    batches = [(tokens[rows], tags[rows]) for rows in draws(20, 16, 64)]
    unified = itnet.unify(model, batches[0][0], copy=True)
    steps = partial(torch.optim.lr_scheduler.StepLR, step_size=20, gamma=0.5)
    trains_alike(model, unified, entropy, batches, partial(torch.optim.RMSprop, lr=0.01), schedule=steps, clip=1.0)
    assert through_graphs(unified)


@pytest.mark.slow
@pytest.mark.foreign
def test_detector_in_parts():
    """Lists of images of several sizes, dictionaries of targets, matching that asks for values."""
    third_party("torchvision")
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    class Backbone(nn.Module):
        out_channels = 16

        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 5, 4, 2), nn.BatchNorm2d(16), nn.ReLU())
            self.down = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())

        def forward(self, x):
            first = self.stem(x)
            return {"first": first, "second": self.down(first)}

    def scene(corner, side):
        image = 0.1 * torch.rand(3, 40, 48)
        image[side % 3, corner : corner + side, corner : corner + side] = 1
        box = torch.tensor([[corner, corner, corner + side, corner + side]], dtype=torch.float32)
        return image, {"boxes": box, "labels": torch.tensor([side % 3])}

    torch.manual_seed(0)
    anchors = AnchorGenerator(((12,), (20,)), ((1.0,),) * 2)
    model = RetinaNet(Backbone(), 3, min_size=40, max_size=64, anchor_generator=anchors).train()
    scenes = [scene(corner, side) for corner in range(2, 18, 3) for side in (10, 15, 20)]
    batches = [tuple(zip(*[scenes[int(row)] for row in rows], strict=True)) for rows in draws(12, 2, len(scenes))]
    batches = [(list(images), list(targets)) for images, targets in batches]
    unified = itnet.unify(model, batches[0], copy=True)
    assert unified.parts and unified.integrals

    def loss_of(model, batch):
        losses = model(copy.copy(batch[0]), [dict(target) for target in batch[1]])
        return torch.stack(list(losses.values())).sum()

    trains_alike(model, unified, loss_of, batches, partial(torch.optim.Adam, lr=3e-3), clip=10.0)
