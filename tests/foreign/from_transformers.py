"""Networks of transformers: a configuration, small or the published one, a head and the inputs it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .registry import Built, Networks, image, tokens

__all__ = ["GROUPED", "PATCHES", "TEXT", "TWO_SIDED", "WIDTHS", "register"]

Inputs = Callable[[Any, bool], dict[str, Tensor]]  # from the configuration and ``full``

WIDTHS = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
TEXT = WIDTHS | dict(vocab_size=128, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GROUPED = TEXT | dict(num_key_value_heads=2)
PATCHES = WIDTHS | dict(image_size=32, patch_size=8)
TWO_SIDED = dict(
    TEXT,
    d_model=64,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    decoder_start_token_id=1,
)
WAVES = dict(
    WIDTHS,
    conv_dim=(32, 32, 32),
    conv_kernel=(10, 3, 2),
    conv_stride=(5, 2, 2),
    num_feat_extract_layers=3,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
# SpecAugment and layer drop choose by Python's and NumPy's random numbers, which no graph holds
FIXED = dict(apply_spec_augment=False, layerdrop=0.0)


def text(config: Any, full: bool) -> dict[str, Tensor]:
    ids = tokens(128 if full else 11)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def ids_alone(config: Any, full: bool) -> dict[str, Tensor]:
    return {"input_ids": tokens(128 if full else 11)}


def few_ids(config: Any, full: bool) -> dict[str, Tensor]:
    return {"input_ids": tokens(128 if full else 4)}  # the loop over positions is unrolled


def translation(config: Any, full: bool) -> dict[str, Tensor]:
    return text(config, full) | {"decoder_input_ids": tokens(64 if full else 7)}


def pixels(config: Any, full: bool) -> dict[str, Tensor]:
    return {"pixel_values": image(32, 224, full)[0]}


def frames(config: Any, full: bool) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, config.num_frames, 3, config.image_size, config.image_size)}


def wave(config: Any, full: bool) -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 16000 if full else 640)}


def spectrum(config: Any, full: bool) -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, config.max_length, config.num_mel_bins)}


def speech(config: Any, full: bool) -> dict[str, Tensor]:
    features = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions)
    return {"input_features": features, "decoder_input_ids": tokens(64 if full else 7)}


def text_and_pixels(config: Any, full: bool) -> dict[str, Tensor]:
    ids = tokens(16 if full else 9)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": image(32, 224, full)[0]}


def series(config: Any, full: bool) -> dict[str, Tensor]:
    return {"past_values": torch.randn(2, config.context_length, config.num_input_channels)}


def register(networks: Networks) -> None:
    """Add them to ``networks``."""

    def network(name: str, family: str, inputs: Inputs, small: dict[str, Any], **more: Any) -> None:
        """``family`` is transformers' prefix, with a head after a colon; ``more`` adds to ``small``."""

        @networks.add("transformers", name)
        def builder(full: bool) -> Built:
            import transformers

            prefix, _, head = family.partition(":")
            options = FIXED if inputs is wave else {"use_cache": False} if "vocab_size" in small | more else {}
            config = getattr(transformers, f"{prefix}Config")(**({} if full else small | more), **options)
            return getattr(transformers, prefix + (head or "Model"))(config), (), inputs(config, full)

    network("bert", "Bert", text, WIDTHS, vocab_size=128, max_position_embeddings=64)
    network("gpt2", "GPT2:LMHeadModel", ids_alone, TEXT)
    network("t5", "T5:ForConditionalGeneration", translation, TEXT, d_kv=16, d_ff=128, decoder_start_token_id=0)
    network("vit", "ViT", pixels, PATCHES)
    side = WIDTHS | dict(projection_dim=32)
    texts = side | dict(vocab_size=128, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    looks = side | dict(image_size=32, patch_size=8)
    network("clip", "CLIP", text_and_pixels, dict(text_config=texts, vision_config=looks, projection_dim=32))
    network("wav2vec2", "Wav2Vec2", wave, WAVES)

    # encoders
    network("distilbert", "DistilBert", text, TEXT, hidden_dim=128)
    network("roberta", "Roberta", text, TEXT)
    network("electra", "Electra", text, TEXT, embedding_size=32)
    network("albert", "Albert", text, TEXT, embedding_size=32)
    network("mpnet", "MPNet", text, TEXT)
    relative = dict(relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, share_att_key=True)
    network("deberta_v2", "DebertaV2", text, TEXT, **relative, norm_rel_ebd="layer_norm")
    ends = dict(cls_token_id=1, sep_token_id=2)
    network("modernbert", "ModernBert", text, TEXT, local_attention=8, global_attn_every_n_layers=2, **ends)
    network("fnet", "FNet", ids_alone, TEXT)
    network("convbert", "ConvBert", text, TEXT, embedding_size=32)
    network("squeezebert", "SqueezeBert", text, TEXT, embedding_size=64)

    # causal language models
    causal = dict(attention_types=[[["global", "local"], 1]], window_size=4)
    network("gpt_neo", "GPTNeo:ForCausalLM", text, TEXT, **causal)
    network("gpt_neox", "GPTNeoX:ForCausalLM", text, TEXT)
    network("llama", "Llama:ForCausalLM", text, GROUPED)
    network("mistral", "Mistral:ForCausalLM", text, GROUPED, sliding_window=4)
    network("qwen2", "Qwen2:ForCausalLM", text, GROUPED)
    network("gemma2", "Gemma2:ForCausalLM", text, GROUPED, head_dim=16, sliding_window=4)
    network("phi", "Phi:ForCausalLM", text, TEXT)
    network("opt", "OPT:ForCausalLM", text, TEXT, ffn_dim=128, word_embed_proj_dim=32)
    network("falcon", "Falcon:ForCausalLM", text, TEXT)
    network("mixtral", "Mixtral:ForCausalLM", text, GROUPED, num_local_experts=4)
    experts = dict(head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=4)
    network("gpt_oss", "GptOss:ForCausalLM", text, GROUPED, **experts)
    network("mamba", "Mamba:ForCausalLM", few_ids, TEXT, state_size=4, time_step_rank=4)
    chunks = dict(num_hidden_layers=1, state_size=8, num_heads=8, head_dim=16, n_groups=2, chunk_size=4)
    network("mamba2", "Mamba2:ForCausalLM", few_ids, TEXT, **chunks)
    network("rwkv", "Rwkv:ForCausalLM", few_ids, TEXT, attention_hidden_size=64)

    # from sequence to sequence
    network("bart", "Bart:ForConditionalGeneration", translation, TWO_SIDED)
    network("marian", "Marian:MTModel", translation, TWO_SIDED, decoder_vocab_size=128)
    network("pegasus", "Pegasus:ForConditionalGeneration", translation, TWO_SIDED)
    sounds = dict(num_mel_bins=16, max_source_positions=20, max_target_positions=20)
    network("whisper", "Whisper:ForConditionalGeneration", speech, TWO_SIDED, **sounds)

    # images, videos, sounds, series
    network("dinov2", "Dinov2", pixels, PATCHES)
    network("siglip_vision", "SiglipVision", pixels, PATCHES)
    network("hf_convnextv2", "ConvNextV2", pixels, dict(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2))
    network("videomae", "VideoMAE", frames, PATCHES, num_frames=4, tubelet_size=2)
    network("hubert", "Hubert", wave, WAVES)
    strides = dict(time_stride=8, frequency_stride=8, max_length=48, num_mel_bins=16)
    network("audio_spectrogram", "AST", spectrum, PATCHES, **strides)
    periods = dict(num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, prediction_length=4)
    network("patchtst", "PatchTST:ForPrediction", series, WIDTHS, d_model=32, **periods)
