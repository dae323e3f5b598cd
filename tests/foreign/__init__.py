"""Networks of torchvision, timm, transformers and torch.nn with random weights, built offline.

    model, args, kwargs = build("resnet50")          # small: seconds to unify
    model, args, kwargs = build("resnet50", full=True)  # the published size
    names("timm"), names()

For tests and benchmarks only. ``hard`` holds those that torch.export cannot take whole, built the same way.
"""

from __future__ import annotations

from . import from_timm, from_torch, from_torchvision, from_transformers, registry
from .registry import Built, Networks, available, prepare

__all__ = ["GROUPS", "OFTEN", "THOROUGH", "Built", "available", "build", "group_of", "names", "prepare"]

GROUPS = registry.GROUPS

_networks = Networks()
for _source in (from_torchvision, from_timm, from_transformers, from_torch):
    _source.register(_networks)
build, group_of, names = _networks.build, _networks.group_of, _networks.names

# Every promise is tested on these, on the others those about values and checkpoints
THOROUGH = frozenset(
    "resnet50 mobilenet_v3_small efficientnet_b0 convnext_tiny densenet121 swin_t vit_b_16 deeplabv3_resnet50 r3d_18"
    " mobilenetv4_conv_small_050 convnextv2_atto ghostnet_050 vit_tiny_patch16_224"
    " bert gpt2 t5 vit clip wav2vec2".split()
    + names("torch")
)
# Small ones that are unlike each other: those of make test; the rest are tested in make test-all.
OFTEN = frozenset(
    "resnet50 mobilenet_v3_small convnext_tiny vit_b_16 mixer_s32_224 mobilenetv4_conv_small_050"
    " bert gpt2 t5 clip wav2vec2 fnet llama mamba".split()
    + names("torch")
)
