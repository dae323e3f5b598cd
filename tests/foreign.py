"""Networks of torchvision, timm, transformers and torch.nn with random weights, built offline.

    model, args, kwargs = build("resnet50")          # small: seconds to unify
    model, args, kwargs = build("resnet50", full=True)  # the published size
    names("timm"), names()

For tests and benchmarks only. torchvision's binary part cannot load where torch is another build than the one it was
made for; ``prepare`` then declares its missing operators, which is all that importing it, timm or transformers takes.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GROUPS", "available", "build", "group_of", "names", "prepare"]

GROUPS = ("torch", "torchvision", "timm", "transformers")
Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

_builders: dict[str, tuple[str, Callable[[bool], Built]]] = {}
_library: torch.library.Library | None = None


def available(group: str) -> bool:
    """Whether the package behind ``group`` is installed."""
    return importlib.util.find_spec(group) is not None


def names(group: str | None = None) -> list[str]:
    """Names that ``build`` knows, of one group or of all."""
    if group is not None and group not in GROUPS:
        raise ValueError(f"no group {group!r}; there are {', '.join(GROUPS)}")
    return [name for name, (where, _) in _builders.items() if group in (None, where)]


def group_of(name: str) -> str:
    """The group that ``name`` belongs to."""
    return _builders[name][0]


def build(name: str, *, full: bool = False) -> Built:
    """The network ``name`` in eval mode with seeded random weights, positional and keyword example inputs.

    ``full`` gives the published width, depth and input size instead of a small version.
    """
    group, builder = _builders[name]
    prepare(group)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # construction-time advice of third parties
        torch.manual_seed(0)
        model, args, kwargs = builder(full)
    return model.eval(), args, kwargs


def prepare(group: str = "torchvision") -> None:
    """Make ``group`` importable here, and keep it off the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if group != "torch" and available("torchvision"):
        _declare_torchvision_operators()


def _declare_torchvision_operators() -> None:
    global _library
    if _library is not None or _binary_part_loads():
        return
    _library = torch.library.Library("torchvision", "DEF")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
        " int sampling_ratio, bool aligned) -> Tensor",
    ):
        _library.define(schema)


def _binary_part_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    for binary in sorted(Path(spec.origin).parent.glob("_C*.[sp][oy]*")):
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            return False
        return True
    return False


def _network(group: str, name: str) -> Callable[[Callable[[bool], Built]], Callable[[bool], Built]]:
    def register(builder: Callable[[bool], Built]) -> Callable[[bool], Built]:
        _builders[name] = (group, builder)
        return builder

    return register


# ── torchvision ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _image(size: int, full_size: int, full: bool) -> tuple[Tensor]:
    side = full_size if full else size
    return (torch.randn(2, 3, side, side),)


def _torchvision_classifier(name: str, small: int, **small_options: Any) -> None:
    @_network("torchvision", name)
    def builder(full: bool) -> Built:
        import torchvision

        model = torchvision.models.get_model(name, weights=None, **({} if full else small_options))
        return model, _image(small, 224, full), {}


_torchvision_classifier("resnet50", 64, num_classes=10)
_torchvision_classifier("mobilenet_v3_small", 64, num_classes=10, width_mult=0.5)
_torchvision_classifier("efficientnet_b0", 64, num_classes=10)


@_network("torchvision", "convnext_tiny")
def _convnext_tiny(full: bool) -> Built:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths, depths = ((96, 192, 384, 768), (3, 3, 9, 3)) if full else ((24, 48, 96), (1, 2, 1))
    stages = zip(widths, (*widths[1:], None), depths, strict=True)
    model = ConvNeXt([CNBlockConfig(*stage) for stage in stages], 0.1, num_classes=1000 if full else 10)
    return model, _image(64, 224, full), {}


@_network("torchvision", "densenet121")
def _densenet121(full: bool) -> Built:
    from torchvision.models.densenet import DenseNet

    size = (32, (6, 12, 24, 16), 64) if full else (8, (2, 3, 2), 16)
    model = DenseNet(*size, drop_rate=0.1, num_classes=1000 if full else 10)
    return model, _image(64, 224, full), {}


@_network("torchvision", "swin_t")
def _swin_t(full: bool) -> Built:
    from torchvision.models.swin_transformer import SwinTransformer

    size = (
        dict(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=[7, 7])
        if full
        else dict(embed_dim=24, depths=[2, 2], num_heads=[2, 3], window_size=[4, 4], num_classes=10)
    )
    model = SwinTransformer([4, 4], **size, stochastic_depth_prob=0.2)  # shifted and, at 36 pixels, padded windows
    return model, _image(36, 224, full), {}


@_network("torchvision", "vit_b_16")
def _vit_b_16(full: bool) -> Built:
    from torchvision.models.vision_transformer import VisionTransformer

    size = (
        dict(image_size=224, patch_size=16, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072)
        if full
        else dict(image_size=48, patch_size=16, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)
    )
    model = VisionTransformer(**size, dropout=0.1, attention_dropout=0.1)
    nn.init.normal_(model.heads.head.weight, std=0.1)  # zero at construction: every output would be 0
    return model, _image(48, 224, full), {}


@_network("torchvision", "deeplabv3_resnet50")
def _deeplabv3(full: bool) -> Built:
    from torchvision.models.segmentation import deeplabv3_resnet50

    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21 if full else 5)
    return model, _image(48, 520, full), {}


@_network("torchvision", "r3d_18")
def _r3d_18(full: bool) -> Built:
    from torchvision.models.video import r3d_18

    frames, side = (16, 112) if full else (6, 32)
    return r3d_18(weights=None, num_classes=400 if full else 10), (torch.randn(2, 3, frames, side, side),), {}


# ── timm ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _timm_classifier(name: str, small: int, **small_options: Any) -> None:
    @_network("timm", name)
    def builder(full: bool) -> Built:
        import timm

        model = timm.create_model(name, pretrained=False, **({} if full else small_options))
        return model, _image(small, 224, full), {}


_timm_classifier("mobilenetv4_conv_small_050", 64, num_classes=10)
_timm_classifier("convnextv2_atto", 64, num_classes=10)
_timm_classifier("ghostnet_050", 64, num_classes=10)
_timm_classifier("vit_tiny_patch16_224", 64, num_classes=10, img_size=64, depth=3)


# ── transformers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _tokens(length: int, vocabulary: int = 128) -> Tensor:
    return torch.randint(3, vocabulary, (2, length))


@_network("transformers", "bert")
def _bert(full: bool) -> Built:
    from transformers import BertConfig, BertModel

    config = (
        BertConfig()
        if full
        else BertConfig(
            vocab_size=128,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=64,
        )
    )
    ids = _tokens(128 if full else 13)
    return BertModel(config), (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@_network("transformers", "gpt2")
def _gpt2(full: bool) -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = (
        GPT2Config(use_cache=False)
        if full
        else GPT2Config(
            vocab_size=128,
            n_positions=64,
            n_embd=64,
            n_layer=2,
            n_head=4,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    return GPT2LMHeadModel(config), (), {"input_ids": _tokens(128 if full else 11)}


@_network("transformers", "t5")
def _t5(full: bool) -> Built:
    from transformers import T5Config, T5ForConditionalGeneration

    config = (
        T5Config(use_cache=False, decoder_start_token_id=0)
        if full
        else T5Config(
            vocab_size=128,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            use_cache=False,
            decoder_start_token_id=0,
        )
    )
    ids = _tokens(128 if full else 9)
    return (
        T5ForConditionalGeneration(config),
        (),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": _tokens(64 if full else 7)},
    )


@_network("transformers", "vit")
def _vit(full: bool) -> Built:
    from transformers import ViTConfig, ViTModel

    config = (
        ViTConfig()
        if full
        else ViTConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            image_size=32,
            patch_size=8,
        )
    )
    return ViTModel(config), (), {"pixel_values": _image(32, 224, full)[0]}


@_network("transformers", "clip")
def _clip(full: bool) -> Built:
    from transformers import CLIPConfig, CLIPModel

    layers = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, projection_dim=32)
    config = (
        CLIPConfig()
        if full
        else CLIPConfig(
            text_config=dict(
                layers, vocab_size=128, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=2
            ),
            vision_config=dict(layers, image_size=32, patch_size=8),
            projection_dim=32,
        )
    )
    ids = _tokens(16 if full else 9)
    return (
        CLIPModel(config),
        (),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": _image(32, 224, full)[0]},
    )


@_network("transformers", "wav2vec2")
def _wav2vec2(full: bool) -> Built:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    # SpecAugment and layer drop choose by Python's and NumPy's random numbers, which no graph holds
    fixed = dict(apply_spec_augment=False, layerdrop=0.0)
    config = (
        Wav2Vec2Config(**fixed)
        if full
        else Wav2Vec2Config(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            conv_dim=(32, 32, 32),
            conv_kernel=(10, 3, 2),
            conv_stride=(5, 2, 2),
            num_feat_extract_layers=3,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            **fixed,
        )
    )
    return Wav2Vec2Model(config), (), {"input_values": torch.randn(2, 16000 if full else 640)}


# ── torch.nn ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Recurrent(nn.Module):
    """Token embedding, a recurrent stack and a linear layer per token."""

    def __init__(self, kind: type[nn.RNNBase], width: int, layers: int, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.recurrent = kind(width, width, layers, batch_first=True, **options)
        features = options.get("proj_size", 0) or width
        self.tags = nn.Linear(features * (2 if options.get("bidirectional") else 1), 17)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tags(self.recurrent(self.embedding(ids))[0])


def _recurrent(name: str, kind: type[nn.RNNBase], layers: int, **options: Any) -> None:
    @_network("torch", name)
    def builder(full: bool) -> Built:
        return Recurrent(kind, 256 if full else 24, layers, **options), (_tokens(64 if full else 11),), {}


_recurrent("bilstm_tagger", nn.LSTM, 1, bidirectional=True)
_recurrent("lstm_stack", nn.LSTM, 3, dropout=0.2)
_recurrent("lstm_projected", nn.LSTM, 2, proj_size=8)
_recurrent("gru_stack", nn.GRU, 2, bidirectional=True, dropout=0.1)
_recurrent("rnn_stack", nn.RNN, 2, nonlinearity="relu")


@_network("torch", "transformer")
def _transformer(full: bool) -> Built:
    width, heads, layers = (512, 8, 6) if full else (32, 4, 2)
    model = nn.Transformer(width, heads, layers, layers, 4 * width, batch_first=True)
    return model, (torch.randn(2, 11, width), torch.randn(2, 7, width)), {}


@_network("torch", "transformer_encoder")
def _transformer_encoder(full: bool) -> Built:
    width, heads, layers = (512, 8, 6) if full else (32, 4, 2)
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, layers), (torch.randn(2, 11, width),), {}
