"""Networks of timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .registry import Built, Networks, image

__all__ = ["register"]


def register(networks: Networks) -> None:
    """Add them to ``networks``."""

    def classifier(name: str, side: int = 64, **small_options: Any) -> None:
        @networks.add("timm", name)
        def builder(full: bool) -> Built:
            import timm

            options = {} if full else dict(num_classes=10) | small_options
            return timm.create_model(name, pretrained=False, **options), image(side, 224, full), {}

    classifier("mobilenetv4_conv_small_050")
    classifier("convnextv2_atto")
    classifier("ghostnet_050")
    classifier("vit_tiny_patch16_224", img_size=64, depth=3)

    classifier("cait_xxs24_224", img_size=64, depth=2, depth_token_only=1)
    classifier("swinv2_tiny_window8_256", 32, img_size=32, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 2))
    classifier("beit_base_patch16_224", 32, img_size=32, embed_dim=64, depth=2, num_heads=4)
    classifier("deit_tiny_distilled_patch16_224", 32, img_size=32, depth=2)
    classifier("xcit_nano_12_p16_224", 32, img_size=32, depth=2, cls_attn_layers=1)
    classifier("coat_tiny", img_size=64, embed_dims=(32,) * 4, serial_depths=(1,) * 4, parallel_depth=1)

    def composed(name: str, make: Callable[[Any], nn.Module], side: int = 32) -> None:
        """Where timm fixes the sizes that go with a name, the small one is made from its class."""

        @networks.add("timm", name)
        def builder(full: bool) -> Built:
            import timm

            return timm.create_model(name) if full else make(timm.models), image(side, 224, full), {}

    mlp = dict(num_classes=10, img_size=32, patch_size=8, num_blocks=2, embed_dim=32)
    gate = lambda m: dict(block_layer=m.SpatialGatingBlock, mlp_layer=m.GatedMlp, mlp_ratio=2.0)  # noqa: E731
    composed("mixer_s32_224", lambda m: m.mlp_mixer.MlpMixer(**mlp))
    composed("resmlp_12_224", lambda m: m.mlp_mixer.MlpMixer(**mlp, block_layer=m.mlp_mixer.ResBlock, mlp_ratio=4.0))
    composed("gmlp_ti16_224", lambda m: m.mlp_mixer.MlpMixer(**mlp, **gate(m.mlp_mixer)))
    four = dict(num_classes=10, depths=(1, 1, 1, 1), dims=(16, 16, 32, 32))
    two_kinds = lambda m: dict(  # noqa: E731
        token_mixers=[m.SepConv] * 2 + [m.Attention] * 2,
        norm_layers=[m.LayerNorm2dNoBias] * 2 + [m.LayerNormNoBias] * 2,
    )
    composed("poolformer_s12", lambda m: m.metaformer.MetaFormer(**four))
    composed("caformer_s18", lambda m: m.metaformer.MetaFormer(**four, **two_kinds(m.metaformer)))
    composed("focalnet_tiny_srf", lambda m: m.focalnet.FocalNet(num_classes=10, depths=(1, 1), embed_dim=16))
