"""Networks that torch.export cannot take whole, or takes wrongly: built as those of ``tests.foreign``, always small.

    for name in names(): model, args, kwargs = build(name)

Each runs as it is, and the same way twice under one seed, in eval mode; all but ``NO_TRAINING`` in train mode too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .from_transformers import GROUPED, PATCHES, TEXT, TWO_SIDED, WIDTHS
from .registry import Built, Networks, tokens

__all__ = ["NO_TRAINING", "OFTEN", "WHOLE_IN_EVAL", "build", "group_of", "names"]

_networks = Networks()
build, group_of, names = _networks.build, _networks.group_of, _networks.names

# Small and unlike each other; the others are tested in make test-all
OFTEN = frozenset("generated_mask branch_on_data packed_lstm ssdlite longformer encodec vilt aimv2_text bloom".split())
# reformer seeds itself from the clock, fastspeech2 wants labels
NO_TRAINING = frozenset({"reformer", "fastspeech2", "fastspeech2_hifigan"})
# torch.export takes these in eval mode, random numbers and all; vit_mae and univnet in train mode too
WHOLE_IN_EVAL = frozenset({"bloom", "vit_mae", "univnet", "detr", "m2m_100", "wav2vec2_bert", "groupvit"})


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Generated(nn.Module):
    """nn.Transformer with a causal mask made in forward, which it compares with a causal mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(32, 128)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.transformer(self.embedding(source), self.embedding(target), tgt_mask=mask))


class Branches(nn.Module):
    """A stem, then one of two branches, chosen by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.left, self.right = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.left(y) if x.sum() > 0 else self.right(y)


class Packed(nn.Module):
    """A tagger of sentences of several lengths, packed for its LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 24)
        self.recurrent = nn.LSTM(24, 24, 2, batch_first=True, bidirectional=True)
        self.tags = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 17))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        output, _ = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return self.tags(output)


def _hand(name: str, kind: type[nn.Module], inputs: Callable[[], tuple[Tensor, ...]]) -> None:
    _networks.add("torch", name)(lambda full: (kind(), inputs(), {}))


_hand("generated_mask", Generated, lambda: (tokens(9), tokens(7)))
_hand("branch_on_data", Branches, lambda: (torch.randn(2, 3, 16, 16),))
_hand("packed_lstm", Packed, lambda: (tokens(9), torch.tensor([6, 9])))


# ── torchvision's detectors ──────────────────────────────────────────────────────────────────────────────────────────


def _detector(name: str, make: Callable[[Any], nn.Module], side: int) -> None:
    @_networks.add("torchvision", name)
    def builder(full: bool) -> Built:
        from torchvision.models import detection

        box = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.9]]) * side
        targets = [{"boxes": box, "labels": torch.tensor([1, 2])} for _ in range(2)]
        return make(detection), ([torch.rand(3, side, side) for _ in range(2)], targets), {}


def _over_pyramid(kind: str) -> Callable[[Any], nn.Module]:
    """A detector on three levels of a small residual network."""

    def make(detection: Any) -> nn.Module:
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
        from torchvision.models.resnet import BasicBlock, ResNet

        backbone = _resnet_fpn_extractor(ResNet(BasicBlock, [1, 1, 1, 1]), 5, returned_layers=[3, 4])
        anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
        return getattr(detection, kind)(backbone, anchor_generator=anchors, min_size=64, max_size=64, **_FEW)

    return make


def _ssd(detection: Any) -> nn.Module:
    from torchvision.models import vgg11
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

    backbone = detection.ssd._vgg_extractor(vgg11(weights=None), False, 5)
    backbone.extra = backbone.extra[:3]  # the others need 300 pixels
    return detection.ssd.SSD(backbone, DefaultBoxGenerator([[2], [2, 3], [2, 3], [2]]), (96, 96), **_FEW)


def _ssdlite(detection: Any) -> nn.Module:
    from torchvision.models import mobilenet_v3_small
    from torchvision.models.detection._utils import retrieve_out_channels
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

    parts, boxes = detection.ssdlite, DefaultBoxGenerator([[2]] * 6)
    backbone = parts._mobilenet_extractor(mobilenet_v3_small(weights=None), 6, nn.BatchNorm2d)
    channels = retrieve_out_channels(backbone, (96, 96))
    head = parts.SSDLiteHead(channels, boxes.num_anchors_per_location(), 4, nn.BatchNorm2d)
    return parts.SSD(backbone, boxes, (96, 96), head=head, **_FEW)


_FEW = dict(num_classes=4, score_thresh=0.0, topk_candidates=20, detections_per_img=5)
_detector("fcos", _over_pyramid("FCOS"), 64)
_detector("retinanet", _over_pyramid("RetinaNet"), 64)
_detector("ssd_vgg", _ssd, 96)
_detector("ssdlite", _ssdlite, 96)


# ── transformers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(length: int = 16) -> dict[str, Tensor]:
    ids = tokens(length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _translation() -> dict[str, Tensor]:
    return _text() | {"decoder_input_ids": tokens(8)}


def _pixels(*shape: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(*(shape or (2, 3, 32, 32)))}


def _patches(features: int) -> dict[str, Tensor]:
    return {"hidden_states": torch.randn(32, features), "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]])}


def _series(config: Any) -> dict[str, Tensor]:
    past, future = config.context_length + max(config.lags_sequence), config.prediction_length
    return {
        "past_values": torch.randn(2, past),
        "past_time_features": torch.randn(2, past, 1),
        "past_observed_mask": torch.ones(2, past),
        "future_values": torch.randn(2, future),
        "future_time_features": torch.randn(2, future, 1),
    }


def _network(name: str, family: str, inputs: Callable[[Any], dict[str, Tensor]], **small: Any) -> None:
    """``family`` is transformers' prefix, with the rest of the class's name after a colon."""

    @_networks.add("transformers", name)
    def builder(full: bool) -> Built:
        import transformers

        prefix, colon, head = family.partition(":")
        config = getattr(transformers, f"{prefix}Config")(**small)
        return getattr(transformers, prefix + (head if colon else "Model"))(config), (), inputs(config)


TEXT = TEXT | dict(use_cache=False)
TWO_SIDED = TWO_SIDED | dict(use_cache=False)
GROUPED = GROUPED | dict(use_cache=False)

# a tensor decides what runs
_network("longformer", "Longformer", lambda c: _text(), **TEXT | dict(attention_window=8, max_position_embeddings=70))
_windows = dict(attention_window=[8, 8], max_encoder_position_embeddings=64, max_decoder_position_embeddings=64)
_network("led", "LED", lambda c: _translation(), **TWO_SIDED | _windows)
_languages = dict(langs=["en", "de"], src_vocab_size=128, tgt_vocab_size=128)
_network("fsmt", "FSMT", lambda c: _translation(), **TWO_SIDED | _languages)
_speech = dict(
    hidden_size=32,
    vocab_size=128,
    num_mel_bins=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_linear_units=32,
    decoder_linear_units=32,
    speech_decoder_postnet_layers=2,
    speech_decoder_postnet_units=16,
    duration_predictor_channels=16,
    energy_predictor_channels=16,
    pitch_predictor_channels=16,
    pitch_predictor_layers=2,
)
_network("fastspeech2", "FastSpeech2Conformer", lambda c: {"input_ids": tokens(9)}, **_speech)
_vocoder = dict(model_in_dim=16, upsample_initial_channel=32, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8])
_blocks = dict(resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]])
_network(
    "fastspeech2_hifigan",
    "FastSpeech2ConformerWithHifiGan:",
    lambda c: {"input_ids": tokens(9)},
    model_config=_speech,
    vocoder_config=_vocoder | _blocks,
)
_hashing = dict(
    attn_layers=["local", "lsh"],
    axial_pos_shape=[4, 4],
    axial_pos_embds_dim=[32, 32],
    attention_head_size=16,
    feed_forward_size=64,
    local_attn_chunk_length=4,
    lsh_attn_chunk_length=4,
    num_buckets=2,
)
_network("reformer", "Reformer", lambda c: _text(), **TEXT | _hashing)
_codec = dict(num_filters=4, codebook_size=32, upsampling_ratios=[4, 2], hidden_size=32)
_wave = lambda c: {"input_values": torch.randn(2, 1, 480)}  # noqa: E731
_network("encodec", "Encodec", _wave, **_codec, codebook_dim=32)
_quantizer = dict(codebook_dim=16, vector_quantization_hidden_dimension=16, num_quantizers=2, upsample_groups=32)
_decoder = dict(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16, intermediate_size=64)
_network("mimi", "Mimi", _wave, **_codec, **_quantizer, **_decoder)
_points = dict(
    model_type="superpoint",
    encoder_hidden_sizes=[16, 16, 32, 32],
    decoder_hidden_size=32,
    descriptor_decoder_dim=32,
    keypoint_threshold=0.0,
    max_keypoints=12,
)
_pairs = lambda c: _pixels(1, 2, 3, 64, 64)  # noqa: E731
_match = dict(num_hidden_layers=2, num_attention_heads=4, descriptor_dim=32)
_network("lightglue", "LightGlue:ForKeypointMatching", _pairs, keypoint_detector_config=_points, **_match)
_graph = dict(
    hidden_size=32, keypoint_encoder_sizes=[16, 32], gnn_layers_types=["self", "cross"], sinkhorn_iterations=5
)
_network("superglue", "SuperGlue:ForKeypointMatching", _pairs, keypoint_detector_config=_points, **_graph)
_tower = dict(depth=2, hidden_size=32, num_heads=2, patch_size=4, intermediate_size=64, spatial_merge_size=2)
_network("glm4v_moe_vision", "Glm4vMoeVision", lambda c: _patches(96), **_tower, image_size=16, out_hidden_size=32)
_network("glm_ocr_vision", "GlmOcrVision", lambda c: _patches(96), **_tower, image_size=16, out_hidden_size=32)
_network("ernie_vision", "Ernie4_5_VLMoeVision:TransformerPretrainedModel", lambda c: _patches(48), **_tower)
_latent = dict(
    vocab_size=128,
    hidden_size=64,
    num_layers=1,
    num_attention_heads=4,
    ffn_hidden_size=64,
    q_lora_rank=32,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=16,
    head_dim=8,
    moe_topk=2,
    n_routed_experts=4,
    zero_expert_num=2,
    expert_ffn_hidden_size=32,
    use_cache=False,
)
_network("longcat_flash", "LongcatFlash:ForCausalLM", lambda c: _text(), **_latent)
_network("vilt", "Vilt", lambda c: _text() | _pixels(), **TEXT | PATCHES)
_switch = dict(d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=4, num_experts=4, expert_capacity=8)
_sparse = dict(num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)
_network("switch_transformers", "SwitchTransformers", lambda c: _translation(), **TWO_SIDED | _switch | _sparse)
_forecast = dict(
    prediction_length=8,
    context_length=14,
    lags_sequence=[1, 2, 3],
    num_time_features=1,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    use_cache=False,
    encoder_layerdrop=0.0,
    decoder_layerdrop=0.0,
)
_network("autoformer", "Autoformer", _series, **_forecast, label_length=7, moving_average=5)
_network("informer", "Informer", _series, **_forecast | dict(context_length=40, encoder_layers=2))

# an output that torch.export does not know, or other values while tracing
_gemma = GROUPED | dict(use_cache=True, model_type="gemma", num_key_value_heads=1, head_dim=16)
_siglip = PATCHES | dict(model_type="siglip_vision_model", projection_dim=64, vision_use_head=False)
_paligemma = dict(
    model_type="paligemma", text_config=_gemma, vision_config=_siglip, image_token_index=127, projection_dim=64
)
_network("colpali", "ColPali:ForRetrieval", lambda c: _text(), vlm_config=_paligemma, embedding_dim=16)
_sides = dict(vision_config=PATCHES, text_config=TEXT, projection_dim=32)
_network("aimv2", "Aimv2", lambda c: _text() | _pixels(), **_sides)
_network("aimv2_text", "Aimv2Text", lambda c: _text(), **TEXT)
_narrow = dict(decoder_num_attention_heads=4, decoder_hidden_size=32, decoder_num_hidden_layers=1)
_network("vit_mae", "ViTMAE:ForPreTraining", lambda c: _pixels(), **PATCHES, **_narrow, decoder_intermediate_size=64)
_noise = dict(model_in_channels=16, model_hidden_channels=8, num_mel_bins=16, kernel_predictor_hidden_channels=16)
_network("univnet", "UnivNet", lambda c: {"input_features": torch.randn(2, 6, 16)}, **_noise)

# their train mode alone
_resnet = dict(model_type="resnet", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
_queries = dict(num_queries=5, d_model=32, backbone_config=_resnet | dict(out_features=["stage2"]))
_network("detr", "Detr:ForObjectDetection", lambda c: _pixels(), **TWO_SIDED | _queries)
_network("m2m_100", "M2M100:ForConditionalGeneration", lambda c: _translation(), **TWO_SIDED)
_mel = dict(feature_projection_input_dim=16, apply_spec_augment=False, conv_depthwise_kernel_size=7)
_network("wav2vec2_bert", "Wav2Vec2Bert", lambda c: {"input_features": torch.randn(2, 20, 16)}, **WIDTHS | _mel)
_groups = PATCHES | dict(depths=[1, 1], num_group_tokens=[8, 0], num_output_groups=[4, 4], hidden_size=64)
_both = dict(text_config=TEXT, vision_config=_groups, projection_dim=32, projection_intermediate_dim=32)
_network("groupvit", "GroupViT", lambda c: _text() | _pixels(), **_both)

# own derivatives; hooks that the first call leaves behind
_network("bloom", "Bloom:ForCausalLM", lambda c: _text(), **TEXT)
