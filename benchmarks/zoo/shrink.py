"""Makes the configuration of any transformers type small, by what its attributes are called.

Nothing here knows a model type; what these rules get wrong is put right in ``from_transformers.EXCEPTIONS``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Any

__all__ = ["Policy", "shrink"]


class Policy(enum.Enum):
    """How much is made smaller; each is tried where the one before it gives no network that runs."""

    HEADS = "four heads of the published size"
    WIDTHS = "widths of 64"
    DEPTH = "two layers of the published width"


def _exactly(names: str) -> re.Pattern[str]:
    return re.compile(f"^({'|'.join(names.split())})$")


_WIDTHS = _exactly(
    "hidden_size d_model n_embd embed_dim dim hidden_dim model_dim encoder_hidden_dim width emb_dim embedding_size"
    " text_embed_dim vision_embed_dim conv_dim backbone_hidden_size decoder_hidden_size n_embed hidden_channels"
    " out_hidden_size output_dim projection_dim fusion_hidden_size mask_feature_size feature_size encoder_hidden_size"
    " cross_attention_hidden_size d_embed lru_width attention_hidden_size mamba_d_model audio_embed_dim"
    " word_embed_proj_dim bottleneck_size intermediate_hidden_size visual_feat_dim conv_hidden_size decoder_hidden_dim"
    " vision_hidden_size text_hidden_size hidden_size_per_layer_input mask_dim latent_dim neck_hidden_size"
    " adapter_in_dim adapter_input_size"
)
_DEPTHS = _exactly(
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers"
    " depth num_blocks layers enc_layers dec_layers num_attention_layers num_transformer_layers n_block"
    " encoder_num_layers decoder_num_layers num_self_attends_per_block vision_depth speech_decoder_layers"
    " t2u_encoder_layers t2u_decoder_layers speech_encoder_layers num_decoder_blocks qformer_num_hidden_layers"
    " num_mem_blocks n_self_attn_layers decoder_num_hidden_layers vision_layers text_layers num_dense_layers"
)
_HEADS = _exactly(
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads"
    " num_encoder_attention_heads num_decoder_attention_heads encoder_num_heads decoder_num_attention_heads"
    " speech_encoder_attention_heads encoder_num_attention_heads decoder_num_heads query_heads"
)
_MAIN_WIDTHS = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "hidden_dim", "width")
_FEED_FORWARD = re.compile(
    "intermediate_size|ffn_dim|n_inner|mlp_dim|d_ff|dim_feedforward|ffn_hidden_size|d_inner|feedforward_dim"
    "|feed_forward_size|intermediate_dim|hidden_ff|ffn_size|inner_dim|ff_dim|filter_size"
)
_GROUPED_HEADS = re.compile("num_key_value_heads|num_kv_heads|n_kv_heads|kv_heads|num_local_kv|multi_query_group_num")
_EXPERTS = re.compile("(num_experts|num_local_experts|n_routed_experts|expert_num|num_routed_experts)$")
_CHOSEN = re.compile("(num_experts_per_tok|top_k|topk|moe_k|experts_per_token|per_token|num_selected_experts)$")
_VOCABULARY = re.compile("(^|_)vocab_size$|^vocab_size_per_layer_input$|^codebook_size$|^num_embeddings$|^n_token$")
_SPECIAL_TOKEN = re.compile("(token_id|token_index|_token)$")
_KINDS_OF_LAYERS = ("layer_types", "layers_block_type")
_LEAVE = frozenset(
    "rope_parameters rope_scaling id2label label2id task_specific_params quantization_config backbone_kwargs"
    " generation_config".split()
)


def shrink(options: dict[str, Any], policy: Policy) -> None:
    """Make ``options``, a configuration as a dict, small in place; those of its parts too."""
    numbers = {key: value for key, value in options.items() if _is_number(value)}
    heads = _first(numbers, filter(_HEADS.match, numbers))
    width = _first(numbers, _MAIN_WIDTHS)
    old_depth = _first(numbers, filter(_DEPTHS.match, numbers))
    depth = _reduce_kinds(options)
    narrow = policy is not Policy.DEPTH
    ratio = _ratio(policy, width, heads)
    vocabulary = 1024 if narrow else 2048
    for key, value in list(options.items()):
        if isinstance(value, dict):
            if key not in _LEAVE and all(isinstance(name, str) for name in value):  # others are tables
                shrink(value, policy)
        elif isinstance(value, (list, tuple)):
            if key == "image_size" and narrow and all(map(_is_number, value)):
                options[key] = [_side(size, options) for size in value]
            elif old_depth and old_depth > 4 and len(value) == old_depth and key not in _KINDS_OF_LAYERS:
                distinct = _distinct(value)
                options[key] = distinct if len(distinct) == depth else list(value[:depth])
        elif not _is_number(value):
            continue
        elif _VOCABULARY.search(key):
            options[key] = min(value, vocabulary) if value > 64 else value
        elif _DEPTHS.match(key):
            options[key] = min(value, depth)
        elif _EXPERTS.search(key):
            options[key] = min(value, 4)
        elif _CHOSEN.search(key):
            options[key] = min(value, 2)
        elif _GROUPED_HEADS.search(key) and narrow and heads:
            options[key] = _fewer(heads) if value == heads else min(value, 2)
        elif _HEADS.match(key) and narrow:
            options[key] = _fewer(value)
        elif _FEED_FORWARD.search(key) and value > 64:
            options[key] = 128 if narrow else 256
        elif _WIDTHS.match(key) and narrow and width and value >= 32:
            options[key] = max(8, round(value * ratio))
        elif key == "head_dim" and policy is Policy.WIDTHS:
            options[key] = 16
        elif key == "image_size" and narrow:
            options[key] = _side(value, options)
        elif key == "n_groups" and value > 2 and narrow:
            options[key] = 2
        else:
            options[key] = _few(key, value)
    if old_depth and old_depth > depth:
        _fewer_stages(options, depth)
    _move_special_tokens(options)


def _side(size: int, options: dict[str, Any]) -> int:
    """At most 64, a multiple of the patch, two patches at least."""
    patch = options.get("patch_size")
    patch = patch if isinstance(patch, int) and patch else 16
    return max(2 * patch, 64 // patch * patch) if size > 64 else size


def _fewer_stages(options: dict[str, Any], depth: int) -> None:
    """Layers that a backbone gives: those that there still are, or the last one; their names follow from them."""
    if not isinstance(options.get("out_indices"), (list, tuple)):
        return
    for key in ("out_features", "stage_names"):
        options.pop(key, None)
    options["out_indices"] = sorted({min(index, depth) for index in options["out_indices"]})


def _few(key: str, value: int) -> int:
    """Numbers of other things, in any policy."""
    if key == "max_position_embeddings" and value > 2048:
        return 1024
    if key == "max_source_positions" and value > 1000:
        return 100
    if key in ("num_queries", "num_query_tokens") and value > 20:
        return 16
    return 1 if key in ("n_group", "topk_group", "num_expert_group", "num_expert_groups") else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _first(numbers: dict[str, int], keys: Iterable[str]) -> int | None:
    return next((numbers[key] for key in keys if key in numbers), None)


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _fewer(heads: int) -> int:
    return 4 if heads % 4 == 0 else 2 if heads % 2 == 0 else heads


def _ratio(policy: Policy, width: int | None, heads: int | None) -> float:
    """By which widths become smaller."""
    if width is None or policy is Policy.DEPTH:
        return 1.0
    if policy is Policy.WIDTHS:
        return 64 / width
    if heads:
        return (heads if heads <= 4 else _fewer(heads)) / heads
    return 256 / width if width > 256 else 1.0


def _reduce_kinds(options: dict[str, Any]) -> int:
    """Leave one layer of each kind, at least two; gives their number."""
    depth = 2
    for key in _KINDS_OF_LAYERS:
        kinds = options.get(key)
        if isinstance(kinds, (list, tuple)) and kinds:
            distinct = _distinct(kinds)
            options[key] = distinct if len(distinct) > 1 else distinct * 2
            depth = len(options[key])
    return depth


def _move_special_tokens(options: dict[str, Any]) -> None:
    """Into the smaller vocabulary, each to a place of its own at its end."""
    sizes = [value for key, value in options.items() if _VOCABULARY.search(key) and _is_number(value)]
    if not sizes:
        return
    free = min(sizes) - 1
    for key in sorted(options):
        value = options[key]
        if not _SPECIAL_TOKEN.search(key):
            continue
        if _is_number(value) and value >= min(sizes):
            options[key], free = free, free - 1
        elif isinstance(value, list):
            options[key] = [min(token, min(sizes) - 1) for token in value if _is_number(token)]
