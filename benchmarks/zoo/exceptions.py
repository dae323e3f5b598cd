"""What the general rules of ``shrink`` get wrong, by transformers' model type."""

from __future__ import annotations

from typing import Any

__all__ = ["DROPPED", "EXCEPTIONS"]

_HEADS = dict(hidden_size=64, num_attention_heads=4)
_GROUPED = _HEADS | dict(num_key_value_heads=2)
_MAMBA = dict(hidden_size=64, intermediate_size=128, state_size=8, time_step_rank=4)
_SSM = dict(mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16, mamba_chunk_size=16)
_HYBRID = dict(num_hidden_layers=4, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"])
_EVERY_SECOND = dict(attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False, mamba_dt_rank=8)
_SERIES = dict(prediction_length=8, context_length=14, lags_sequence=[1, 2, 3], d_model=16)
_PATCHED_SERIES = dict(num_input_channels=3, context_length=32, patch_length=8, patch_stride=8)
_DELTA = dict(
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    layer_types=["linear_attention", "full_attention"],
    num_hidden_layers=2,
)
_HASHED = dict(
    _HEADS,
    attn_layers=["local", "lsh"],
    axial_pos_shape=[4, 8],
    axial_pos_embds_dim=[32, 32],
    attention_head_size=16,
    feed_forward_size=64,
    local_attn_chunk_length=4,
    lsh_attn_chunk_length=4,
    num_hidden_layers=2,
    num_buckets=2,
    num_hashes=1,
    max_position_embeddings=32,
    vocab_size=320,
)
_CHUNKWISE = dict(
    chunkwise_kernel="chunkwise--native_autograd",
    sequence_kernel="native_sequence__native",
    step_kernel="native",
)

_SEGMENT = dict(
    vision_config=dict(fpn_hidden_size=128, backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]]),
    prompt_encoder_config=dict(hidden_size=128),
)
_PYRAMID = dict(neck_hidden_sizes=[8, 16, 32, 64], backbone_config=dict(num_hidden_layers=4, out_indices=[1, 2, 3, 4]))

EXCEPTIONS: dict[str, dict[str, Any]] = {
    # state spaces and linear recurrences: sizes that are products of others
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "mamba2": dict(num_heads=8, head_dim=16, hidden_size=64, state_size=16, n_groups=2, chunk_size=16),
    "rwkv": dict(hidden_size=64, attention_hidden_size=64, intermediate_size=128),
    "jamba": _EVERY_SECOND | dict(expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8),
    "bamba": _GROUPED | _SSM | dict(attn_layer_indices=[1], mamba_n_groups=1),
    "zamba": _HEADS | _HYBRID | _EVERY_SECOND | dict(attention_hidden_size=128, num_key_value_heads=4, n_mamba_heads=2),
    "zamba2": _HEADS
    | _HYBRID
    | dict(num_key_value_heads=4, n_mamba_heads=8, mamba_d_state=8, chunk_size=16, mamba_ngroups=1, num_mem_blocks=1)
    | dict(mamba_headdim=16, mamba_expand=2, attention_hidden_size=128, attention_head_dim=32)
    | dict(hybrid_layer_ids=[1, 3]),
    "granitemoehybrid": _GROUPED | _SSM | dict(layer_types=["mamba", "attention"]),
    "nemotron_h": _GROUPED | dict(mamba_num_heads=8, mamba_head_dim=16, ssm_state_size=16, n_groups=2, chunk_size=16),
    "falcon_h1": _GROUPED | _SSM | dict(mamba_d_ssm=128, mamba_n_groups=1),
    "recurrent_gemma": _HEADS
    | dict(num_key_value_heads=1, lru_width=64, num_hidden_layers=3, intermediate_size=128)
    | dict(block_types=["recurrent", "recurrent", "attention"]),
    "xlstm": dict(hidden_size=64, num_heads=4, embedding_dim=64, num_blocks=2, chunk_size=16, mode="inference")
    | _CHUNKWISE,
    "qwen3_next": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": _DELTA,
    # attention within blocks: blocks that fit a short text
    "reformer": _HASHED,
    "big_bird": _HEADS | dict(block_size=4, num_random_blocks=1, attention_type="block_sparse"),
    "bigbird_pegasus": dict(block_size=4, num_random_blocks=1, attention_type="block_sparse"),
    "longformer": _HEADS | dict(attention_window=[8, 8]),
    "led": dict(attention_window=[8, 8]),
    "longt5": dict(local_radius=4, global_block_size=4, encoder_attention_type="transient-global"),
    "canine": _HEADS | dict(local_transformer_stride=4),
    "step3p5": dict(sliding_window=16),
    # widths that the rules do not see belong together; what is off by default
    "deberta": dict(relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta-v2": dict(relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8),
    "funnel": dict(block_sizes=[1, 1, 1], d_model=64, n_head=4, d_head=16, d_inner=64),
    "xlnet": dict(d_model=64, n_head=4, d_head=16),
    "perceiver": dict(num_latents=16, d_latents=64, d_model=64, num_blocks=1, num_self_attends_per_block=2)
    | dict(num_self_attention_heads=4, num_cross_attention_heads=4),
    "nemotron": dict(num_key_value_heads=2),
    "hunyuan_v1_dense": dict(head_dim=32),
    "deepseek_v2": dict(num_experts_per_tok=2, n_group=1, topk_group=1),
    # series: lengths that go with the lags
    "time_series_transformer": _SERIES | dict(context_length=12),
    "autoformer": _SERIES | dict(label_length=7, moving_average=5),
    "informer": _SERIES,
    "patchtst": _PATCHED_SERIES,
    "patchtsmixer": _PATCHED_SERIES,
    "sam2": _SEGMENT,
    "sam2_video": _SEGMENT,
    "depth_anything": _PYRAMID,
    "prompt_depth_anything": _PYRAMID,
    "tipsv2_dpt": _PYRAMID,
    "zoedepth": _PYRAMID,
    "csm": dict(codec_config=dict(upsample_groups=1)),
    "lw_detr": dict(projector_scale_factors=[1.0], num_feature_levels=1)
    | dict(backbone_config=dict(num_windows=4, num_windows_side=2, window_block_indices=[0])),
    # tokens and languages
    "blip-2": dict(image_token_index=1000),
    "instructblip": dict(image_token_index=1000),
    "qwen3_omni_moe_thinker": dict(vision_start_token_id=1000),
    "chameleon": dict(vocabulary_map={"<image>": 1000}),
    "xmod": dict(default_language="en_XX"),
    "llama4_text": dict(pad_token_id=0),
    "esm": dict(vocab_size=33, pad_token_id=1, mask_token_id=32),
}
# Attributes that follow from others, and must not be given.
DROPPED: dict[str, tuple[str, ...]] = {
    "bamba": ("layers_block_type", "layer_types"),
    "granitemoehybrid": ("layers_block_type",),
    "autoformer": ("feature_size",),
    "informer": ("feature_size",),
    "time_series_transformer": ("feature_size",),
}
