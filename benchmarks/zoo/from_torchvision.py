"""Networks of torchvision: the smallest of every family, at a small image size where the architecture allows it."""

from __future__ import annotations

from typing import Any

import torch

from tests.foreign.registry import Built

__all__ = ["FAMILIES", "build"]

_FLAT = dict(num_classes=10)
_DETECTOR = dict(weights_backbone=None, num_classes=5, min_size=64, max_size=64)
_REGIONS = _DETECTOR | dict(box_score_thresh=0.0, rpn_post_nms_top_n_test=20, box_detections_per_img=5)
_DENSE = dict(weights_backbone=None, num_classes=5)

# name: family, shape of the input without the batch, options
_NETWORKS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "alexnet": ("alexnet", (3, 64, 64), _FLAT),
    "convnext_tiny": ("convnext", (3, 64, 64), _FLAT),
    "densenet121": ("densenet", (3, 64, 64), _FLAT),
    "efficientnet_b0": ("efficientnet", (3, 64, 64), _FLAT),
    "efficientnet_v2_s": ("efficientnet_v2", (3, 64, 64), _FLAT),
    "googlenet": ("googlenet", (3, 64, 64), _FLAT | dict(init_weights=False, aux_logits=False)),
    "inception_v3": ("inception", (3, 96, 96), _FLAT | dict(init_weights=False)),
    "maxvit_t": ("maxvit", (3, 224, 224), _FLAT),
    "mnasnet0_5": ("mnasnet", (3, 64, 64), _FLAT),
    "mobilenet_v2": ("mobilenet_v2", (3, 64, 64), _FLAT),
    "mobilenet_v3_small": ("mobilenet_v3", (3, 64, 64), _FLAT),
    "regnet_x_400mf": ("regnet_x", (3, 64, 64), _FLAT),
    "regnet_y_400mf": ("regnet_y", (3, 64, 64), _FLAT),
    "resnet18": ("resnet", (3, 64, 64), _FLAT),
    "resnext50_32x4d": ("resnext", (3, 64, 64), _FLAT),
    "wide_resnet50_2": ("wide_resnet", (3, 64, 64), _FLAT),
    "shufflenet_v2_x0_5": ("shufflenet_v2", (3, 64, 64), _FLAT),
    "squeezenet1_1": ("squeezenet", (3, 64, 64), _FLAT),
    "swin_t": ("swin", (3, 64, 64), _FLAT),
    "swin_v2_t": ("swin_v2", (3, 64, 64), _FLAT),
    "vgg11": ("vgg", (3, 64, 64), _FLAT),
    "vgg11_bn": ("vgg_bn", (3, 64, 64), _FLAT),
    "vit_b_16": ("vit", (3, 64, 64), _FLAT | dict(image_size=64)),
    "deeplabv3_mobilenet_v3_large": ("deeplabv3", (3, 64, 64), _DENSE),
    "fcn_resnet50": ("fcn", (3, 64, 64), _DENSE),
    "lraspp_mobilenet_v3_large": ("lraspp", (3, 64, 64), _DENSE),
    "fasterrcnn_mobilenet_v3_large_320_fpn": ("fasterrcnn", (3, 64, 64), _REGIONS),
    "maskrcnn_resnet50_fpn": ("maskrcnn", (3, 64, 64), _REGIONS),
    "keypointrcnn_resnet50_fpn": ("keypointrcnn", (3, 64, 64), _REGIONS | dict(num_classes=2)),
    "fcos_resnet50_fpn": ("fcos", (3, 64, 64), _DETECTOR | dict(score_thresh=0.0)),
    "retinanet_resnet50_fpn": ("retinanet", (3, 64, 64), _DETECTOR | dict(score_thresh=0.0)),
    "ssd300_vgg16": ("ssd", (3, 300, 300), _DENSE | dict(score_thresh=0.0)),
    "ssdlite320_mobilenet_v3_large": ("ssdlite", (3, 320, 320), _DENSE | dict(score_thresh=0.0)),
    "mc3_18": ("mc3", (3, 8, 32, 32), _FLAT),
    "r2plus1d_18": ("r2plus1d", (3, 8, 32, 32), _FLAT),
    "r3d_18": ("r3d", (3, 8, 32, 32), _FLAT),
    "mvit_v1_b": ("mvit", (3, 16, 224, 224), _FLAT),
    "s3d": ("s3d", (3, 16, 224, 224), _FLAT),
    "swin3d_t": ("swin3d", (3, 8, 32, 32), _FLAT),
    "raft_small": ("raft", (3, 128, 128), dict(num_flow_updates=2)),
}
_DETECTORS = frozenset("fasterrcnn maskrcnn keypointrcnn fcos retinanet ssd ssdlite".split())

FAMILIES = {name: family for name, (family, _, _) in _NETWORKS.items()}

_library: torch.library.Library | None = None


def build(name: str) -> Built:
    """The network, positional and keyword example inputs."""
    import torchvision

    family, shape, options = _NETWORKS[name]
    if family == "raft":
        model = torchvision.models.get_model(name, weights=None)
        return model, (torch.randn(2, *shape), torch.randn(2, *shape)), options
    model = torchvision.models.get_model(name, weights=None, **options)
    if family in _DETECTORS:
        _implement_roi_align()
        return model, ([torch.rand(shape) for _ in range(2)],), {}
    return model, (torch.randn(2, *shape),), {}


def _implement_roi_align() -> None:
    """Where torchvision's binary part cannot load, by its own definition in Python, not compiled."""
    global _library
    from torchvision.ops.roi_align import _roi_align

    if _library is None and not torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::roi_align", "CPU"):
        _library = torch.library.Library("torchvision", "IMPL")
        _library.impl("roi_align", getattr(_roi_align, "__wrapped__", _roi_align), "CompositeImplicitAutograd")
