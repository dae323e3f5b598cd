"""Networks of timm: the smallest of every module by parameters, and of architectures that share a module.

Modules are timm's own (``timm.list_modules()``); ``smallest()`` finds them anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.foreign.registry import Built

__all__ = ["FAMILIES", "build", "smallest"]

_BY_MODULE = (
    "beit:beit_base_patch16_224 byoanet:botnet26t_256,eca_botnext26ts_256,halonet_h1,lambda_resnet26t"
    " byobnet:bat_resnext26ts,gcresnet33ts,gernet_s,mobileone_s1,repvgg_a0 cait:cait_xxs24_224 coat:coat_tiny"
    " convit:convit_tiny convmixer:convmixer_768_32 convnext:convnext_zepto_rms,convnextv2_atto cpubone:cpubone_nano"
    " crossvit:crossvit_tiny_240 csatv2:csatv2 cspnet:cs3darknet_focus_s,cspresnet50,darknet17 cspnext:cspnext_tiny"
    " davit:davit_tiny deepseek_vit:deepseek_vit_412m deit:deit_tiny_patch16_224 densenet:densenet121 dla:dla46x_c"
    " dpn:dpn48b edgenext:edgenext_xx_small efficientformer:efficientformer_l1 efficientformer_v2:efficientformerv2_s0"
    " efficientnet:efficientnet_lite0,mixnet_s,mobilenetv2_035 efficientvim:efficientvim_m1"
    " efficientvit_mit:efficientvit_b0 efficientvit_msra:efficientvit_m0"
    " eva:eva02_tiny_patch14_224,vit_tiny_patch16_dinov3_qkvb fasternet:fasternet_t0 fastvit:fastvit_t8"
    " focalnet:focalnet_tiny_srf gcvit:gcvit_xxtiny gemma4_vit:gemma4_vit_167m_enc"
    " ghostnet:ghostnet_050,ghostnetv3_050 hardcorenas:hardcorenas_b hgnet:hgnetv2_b0 hiera:hiera_tiny_224"
    " hieradet_sam2:sam2_hiera_tiny hrnet:hrnet_w18_small iformer:iformer_t inception_next:inception_next_atto"
    " inception_resnet_v2:inception_resnet_v2 inception_v3:inception_v3 inception_v4:inception_v4"
    " lcnetv2:lcnetv2_small levit:levit_128s lowformer:lowformer_b0 mambaout:mambaout_femto"
    " maxxvit:coatnet_pico_rw_224,coatnext_nano_rw_224,maxvit_pico_rw_256,maxxvit_rmlp_nano_rw_256"
    " metaformer:caformer_s18,convformer_s18,poolformerv2_s12"
    " mlp_mixer:gmixer_12_224,gmlp_ti16_224,mixer_s16_224,resmlp_12_224"
    " mobilenetv3:lcnet_035,mobilenetv4_conv_small_035,mobilenetv4_hybrid_medium_075 mobilenetv5:mobilenetv5_base"
    " mobilevit:mobilevit_xxs,mobilevitv2_050 mvitv2:mvitv2_tiny naflexvit:naflexvit_base_patch16_parfac_gap"
    " nasnet:nasnetalarge nest:nest_tiny nextvit:nextvit_small nfnet:nf_regnet_b0 pit:pit_ti_224 pnasnet:pnasnet5large"
    " pvt_v2:pvt_v2_b0 qwen3_vit:qwen3_vit_88m rdnet:rdnet_tiny regnet:regnetx_002,regnetz_005"
    " repghost:repghostnet_050 repvit:repvit_m1 res2net:res2next50 resnest:resnest14d"
    " resnet:resnet10t,resnetblur18,seresnext26t_32x4d resnetv2:resnetv2_18 rexnet:rexnet_100,rexnetr_100"
    " selecsls:selecsls42 senet:legacy_seresnet18 sequencer:sequencer2d_s shvit:shvit_s1"
    " sknet:skresnet18,skresnext50_32x4d starnet:starnet_s050 swiftformer:swiftformer_xs"
    " swin_transformer:swin_tiny_patch4_window7_224 swin_transformer_v2:swinv2_tiny_window8_256"
    " swin_transformer_v2_cr:swinv2_cr_tiny_224 tiny_vit:tiny_vit_5m_224 tnt:tnt_s_legacy_patch16_224"
    " tresnet:tresnet_m twins:twins_svt_small vgg:vgg11 visformer:visformer_tiny"
    " vision_transformer:flexivit_small,vit_tiny_patch16_224 vision_transformer_hybrid:vit_tiny_r_s16_p8_224"
    " vision_transformer_relpos:vit_srelpos_small_patch16_224 vision_transformer_sam:samvit_base_patch16_224"
    " vitamin:vitamin_small_224 volo:volo_d1_224 vovnet:ese_vovnet19b_slim_dw,vovnet39a xception:legacy_xception"
    " xception_aligned:xception41p xcit:xcit_nano_12_p8_224"
)
FAMILIES = {
    name: module
    for module, _, found in (line.partition(":") for line in _BY_MODULE.split())
    for name in found.split(",")
}
# Image sizes in the order in which they are tried, before the one of the published weights.
_SIDES = (64, 96, 128)


def build(name: str) -> Built:
    """The network, positional and keyword example inputs."""
    import timm

    # Transformers have positions for one image size, but many can be built for another.
    attempts: list[tuple[int, dict[str, Any]]] = [(side, dict(img_size=side)) for side in _SIDES]
    attempts += [(side, {}) for side in _SIDES]
    for side, options in attempts:
        try:
            model = timm.create_model(name, pretrained=False, num_classes=10, **options).eval()
            if options or not model.pretrained_cfg.get("fixed_input_size"):
                return _checked(model, side)
        except Exception:  # whatever an architecture says to a size that it does not take
            continue
    model = timm.create_model(name, pretrained=False, num_classes=10)
    return _checked(model, model.pretrained_cfg["input_size"][-1])


def _checked(model: nn.Module, side: int) -> Built:
    inputs = (torch.randn(2, 3, side, side),)
    with torch.no_grad():
        model(*inputs)
    return model, inputs, {}


def smallest() -> dict[str, str]:
    """The smallest network of each module by parameters; some minutes."""
    import timm
    from timm.models._registry import _model_to_module

    found: dict[str, tuple[int, str]] = {}
    for name in timm.list_models(exclude_filters="test_*"):
        with torch.device("meta"):
            size = sum(one.numel() for one in timm.create_model(name, num_classes=10).parameters())
        found[_model_to_module[name]] = min(found.get(_model_to_module[name], (size, name)), (size, name))
    return {module: name for module, (_, name) in found.items()}
