"""Networks of torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .registry import Built, Networks, image

__all__ = ["register"]


def register(networks: Networks) -> None:
    """Add them to ``networks``."""

    def classifier(name: str, side: int = 64, **small_options: Any) -> None:
        @networks.add("torchvision", name)
        def builder(full: bool) -> Built:
            import torchvision

            model = torchvision.models.get_model(name, weights=None, **({} if full else small_options))
            return model, image(side, 224, full), {}

    classifier("resnet50", num_classes=10)
    classifier("mobilenet_v3_small", num_classes=10, width_mult=0.5)
    classifier("efficientnet_b0", num_classes=10)
    classifier("squeezenet1_1", num_classes=10)
    classifier("shufflenet_v2_x0_5", num_classes=10)
    classifier("mnasnet0_5", num_classes=10)
    classifier("googlenet", num_classes=10, init_weights=False)  # auxiliary outputs in train mode

    for build in (_convnext_tiny, _densenet121, _swin_t, _vit_b_16, _deeplabv3_resnet50, _r3d_18):
        networks.add("torchvision", build.__name__[1:])(build)
    for name, (parts, side) in _COMPOSED.items():
        networks.add("torchvision", name)(_composed(name, parts, side))


def _convnext_tiny(full: bool) -> Built:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths, depths = ((96, 192, 384, 768), (3, 3, 9, 3)) if full else ((24, 48, 96), (1, 2, 1))
    stages = zip(widths, (*widths[1:], None), depths, strict=True)
    model = ConvNeXt([CNBlockConfig(*stage) for stage in stages], 0.1, num_classes=1000 if full else 10)
    return model, image(64, 224, full), {}


def _densenet121(full: bool) -> Built:
    from torchvision.models.densenet import DenseNet

    size = (32, (6, 12, 24, 16), 64) if full else (8, (2, 3, 2), 16)
    model = DenseNet(*size, drop_rate=0.1, num_classes=1000 if full else 10)
    return model, image(64, 224, full), {}


def _swin_t(full: bool) -> Built:
    from torchvision.models.swin_transformer import SwinTransformer

    size = (
        dict(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=[7, 7])
        if full
        else dict(embed_dim=24, depths=[2, 2], num_heads=[2, 3], window_size=[4, 4], num_classes=10)
    )
    model = SwinTransformer([4, 4], **size, stochastic_depth_prob=0.2)  # shifted and, at 36 pixels, padded windows
    return model, image(36, 224, full), {}


def _vit_b_16(full: bool) -> Built:
    from torchvision.models.vision_transformer import VisionTransformer

    size = (
        dict(image_size=224, patch_size=16, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072)
        if full
        else dict(image_size=48, patch_size=16, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)
    )
    model = VisionTransformer(**size, dropout=0.1, attention_dropout=0.1)
    nn.init.normal_(model.heads.head.weight, std=0.1)  # zero at construction: every output would be 0
    return model, image(48, 224, full), {}


def _deeplabv3_resnet50(full: bool) -> Built:
    from torchvision.models.segmentation import deeplabv3_resnet50

    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21 if full else 5)
    return model, image(48, 520, full), {}


def _r3d_18(full: bool) -> Built:
    from torchvision.models.video import r3d_18

    frames, side = (16, 112) if full else (6, 32)
    return r3d_18(weights=None, num_classes=400 if full else 10), (torch.randn(2, 3, frames, side, side),), {}


def _resnext() -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4, num_classes=10)


def _regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    return RegNet(BlockParams.from_init_params(4, 24, 30.0, 2.5, 8, se_ratio=0.25), num_classes=10)


def _efficientnet_v2() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    settings = [
        FusedMBConvConfig(1, 3, 1, 24, 24, 1),
        FusedMBConvConfig(4, 3, 2, 24, 48, 1),
        MBConvConfig(4, 3, 2, 48, 64, 1),
    ]
    return EfficientNet(settings, 0.2, last_channel=128, num_classes=10)


def _fcn() -> nn.Module:
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    backbone = IntermediateLayerGetter(resnet18(weights=None), {"layer4": "out", "layer3": "aux"})
    return FCN(backbone, FCNHead(512, 5), FCNHead(256, 5))


def _lraspp() -> nn.Module:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)


# Networks whose small version is put together from the library's parts; the published one is made by name.
_COMPOSED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnext50_32x4d": (_resnext, 64),
    "regnet_y_400mf": (_regnet, 64),
    "efficientnet_v2_s": (_efficientnet_v2, 64),
    "fcn_resnet50": (_fcn, 48),
    "lraspp_mobilenet_v3_large": (_lraspp, 64),
}


def _composed(name: str, small: Callable[[], nn.Module], side: int) -> Callable[[bool], Built]:
    def builder(full: bool) -> Built:
        import torchvision

        options = dict(weights_backbone=None) if name.startswith(("fcn", "lraspp")) else {}
        model = torchvision.models.get_model(name, weights=None, **options) if full else small()
        return model, image(side, 520 if options else 224, full), {}

    return builder
