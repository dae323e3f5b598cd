"""Example inputs of any transformers network, by the names of what its ``forward`` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["example"]

_BATCH = 2
_LENGTH = 32
# Tried in turn where the configuration says nothing of the size.
_SIDES = (64, 128, 224, 32)
_SAMPLES = (3200, 6400, 16000, 48000)
_USUAL = ("input_ids", "pixel_values", "input_values", "input_features", "inputs_embeds", "hidden_states", "inputs")
# Two towers: text and image both must be given.
_TWO_TOWERS = (
    "aimv2conf clip align altclip blipconf chinese clipseg flava groupvit metaclip owl siglip bridgetower vilt xclip"
    " tipsv2 git kosmos2conf"
)
_CODECS = ("encodec", "dac", "mimi", "xcodec", "neucodec", "tokenizer", "vibe")
_SPECTROGRAMS = ("whisper", "audioflamingo", "qwen2audio", "voxtral", "musicflamingo")


def example(model: Any, variant: int = 0) -> dict[str, Any]:
    """Keyword arguments for ``model``; ``variant`` 0 to 3 takes other sizes where nothing names them."""
    return _Inputs(model, variant).all()


class _Inputs:
    def __init__(self, model: Any, variant: int) -> None:
        self.config, self.variant = model.config, variant
        self.name = type(model).__name__.lower()
        self.taken = inspect.signature(model.forward).parameters
        self.main = getattr(model, "main_input_name", "input_ids")
        self.main = self.main[0] if isinstance(self.main, (list, tuple)) else self.main
        self.length = 16 if self.name in ("owlvitmodel", "owlv2model") else _LENGTH
        self.random = torch.Generator().manual_seed(1)
        self.given: dict[str, Any] = {}

    def all(self) -> dict[str, Any]:
        for name in self._wanted():
            if name not in self.given:
                self.given[name] = self._one(name)
        self._complete()
        return self.given

    def _wanted(self) -> list[str]:
        kind = type(self.config).__name__.lower()
        if kind == "clapconfig":
            return ["input_ids", "input_features"]
        if kind.startswith("speecht5config"):
            width = self.config.hidden_size
            self.given |= {"input_values": self._randn(self.length, width)}
            self.given |= {"decoder_input_values": self._randn(self.length // 2, width)}
            return []
        if kind in ("blip2config", "instructblipconfig"):
            ids = self._ids()
            ids[:, : self.config.num_query_tokens] = self.config.image_token_index
            self.given["input_ids"] = ids
            return ["pixel_values", *(name for name in ("qformer_input_ids",) if name in self.taken)]
        both = {"input_ids", "pixel_values"} <= self.taken.keys()
        no_image_token = not any(hasattr(self.config, name) for name in ("image_token_id", "image_token_index"))
        if both and no_image_token and kind.startswith(tuple(_TWO_TOWERS.split())):
            return ["input_ids", "pixel_values"]
        required = [
            name
            for name, one in self.taken.items()
            if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
        ]
        wanted = list(dict.fromkeys([self.main] * (self.main in self.taken) + required))
        return wanted or [name for name in _USUAL if name in self.taken][:1]

    def _one(self, name: str) -> Any:
        for names, make in _MAKERS.items():
            if name in names.split():
                return make(self)
        raise NotImplementedError(f"no example for the argument {name}")

    def _complete(self) -> None:
        """Arguments that go with others."""
        given, taken = self.given, self.taken
        if self.name.startswith("peaudiovideo"):
            given["pixel_values_videos"] = self._randn(4, 3, 336, 336)
        if "grid_thw" in given and "hidden_states" in given:
            side = self.find("patch_size", default=14)
            depth = self.find("temporal_patch_size", default=1)
            given["hidden_states"] = torch.randn(32, self._channels() * side * side * depth, generator=self.random)
        if "input_ids" in given:
            if "attention_mask" in taken and "attention_mask" not in given:
                given["attention_mask"] = torch.ones(_BATCH, given["input_ids"].shape[1], dtype=torch.long)
            if "bbox" in taken and "bbox" not in given:
                given["bbox"] = self._boxes()
        if "decoder_input_ids" in taken and "decoder_input_ids" not in given:
            given["decoder_input_ids"] = self._ids(self.length // 2)
        if self.name == "lxmertmodel":
            given["visual_feats"] = self._randn(10, self.config.visual_feat_dim)
            given["visual_pos"] = torch.rand(_BATCH, 10, 4, generator=self.random)

    def find(self, *names: str, default: Any = None, config: Any = None) -> Any:
        """The first of these attributes that the configuration or one inside it has."""
        from transformers import PreTrainedConfig

        config = config or self.config
        for name in names:
            if getattr(config, name, None) is not None:
                return getattr(config, name)
        for part in vars(config).values():
            if isinstance(part, PreTrainedConfig):
                found = self.find(*names, config=part)
                if found is not None:
                    return found
        return default

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(_BATCH, *shape, generator=self.random)

    def _ids(self, length: int = 0) -> Tensor:
        text = getattr(self.config, "text_config", None) or self.config
        size = self.find("vocab_size", "n_token", "num_embeddings", default=100, config=text)
        size = size[0] if isinstance(size, (list, tuple)) else size
        return torch.randint(5, max(6, int(size) - 40), (_BATCH, length or self.length), generator=self.random)

    def _width(self) -> int:
        return self.find("hidden_size", "d_model", "embed_dim", "dim", "hidden_dim", default=64)

    def _channels(self) -> int:
        found = self.find("num_channels", "in_channels", "in_chans", "image_channels", default=3)
        return found if isinstance(found, int) else 3

    def _size(self) -> tuple[int, int]:
        found = self.find("image_size", "input_size", "img_size", default=_SIDES[self.variant])
        if isinstance(found, dict):
            return found["height"], found["width"]
        return (found, found) if isinstance(found, int) else (found[0], found[1])

    def _image(self) -> Tensor:
        channels, size = self._channels(), self._size()
        if any(part in self.name for part in ("video", "timesformer", "vivit", "xclip")):
            return self._video()
        if "seggpt" in self.name:  # a prompt and an image, one above the other
            size = (size[0] // 2, size[1])
        if any(part in self.name for part in ("superglue", "lightglue", "loftr")):
            return self._randn(2, 3, 64, 64)
        return self._randn(*((2,) if "tvp" in self.name else ()), channels, *size)

    def _video(self) -> Tensor:
        return self._randn(self.find("num_frames", "frames_per_clip", default=8), self._channels(), *self._size())

    def _values(self) -> Tensor:
        if self.name.startswith("ast"):
            return self._randn(self.config.max_length, self.config.num_mel_bins)
        if any(part in self.name for part in _CODECS):
            return self._randn(self.config.audio_channels if self.name.startswith("encodec") else 1, 4800)
        if self.name.startswith("peaudio"):
            return self._randn(1, _SAMPLES[self.variant])
        if "speecht5" in self.name:
            return torch.randint(5, 60, (_BATCH, self.length), generator=self.random)
        return self._randn(_SAMPLES[self.variant])

    def _features(self) -> Tensor:
        names = "num_mel_bins input_feat_per_channel feature_size input_dim n_mels feature_projection_input_dim"
        bands = self.find(*names.split(), default=80)
        bands = bands if isinstance(bands, int) else 80
        if any(part in self.name for part in _SPECTROGRAMS):
            return self._randn(bands, 2 * self.find("max_source_positions", default=100))
        if "clap" in self.name:
            return self._randn(1, 1001, 64)
        return self._randn(bands, 64) if self.variant % 2 else self._randn(64, bands)

    def _series(self) -> Tensor:
        if "patchts" in self.name:
            return self._randn(self.config.context_length, self.config.num_input_channels)
        if "timesfm" in self.name:
            return self._randn(self.config.context_length)
        past, future = self.config.context_length + max(self.config.lags_sequence), self.config.prediction_length
        features = self.config.num_time_features
        self.given |= {
            "past_time_features": self._randn(past, features),
            "past_observed_mask": torch.ones(_BATCH, past),
            "future_values": self._randn(future),
            "future_time_features": self._randn(future, features),
        }
        return self._randn(past)

    def _states(self) -> Tensor:
        self.given |= {
            "actions": self._randn(5, self.config.act_dim),
            "rewards": self._randn(5, 1),
            "returns_to_go": self._randn(5, 1),
            "timesteps": torch.arange(5).expand(_BATCH, 5),
            "attention_mask": torch.ones(_BATCH, 5, dtype=torch.long),
        }
        return self._randn(5, self.config.state_dim)

    def _boxes(self) -> Tensor:
        return torch.zeros(_BATCH, self.length, 4, dtype=torch.float if "udop" in self.name else torch.long)

    def _patches(self) -> Tensor:
        return torch.cat([torch.ones(_BATCH, 16, 2), self._randn(16, 768)], -1)


# Names of arguments: how an example of each is made.
_MAKERS: dict[str, Callable[[_Inputs], Any]] = {
    "input_ids qformer_input_ids": lambda self: self._ids(),
    "decoder_input_ids": lambda self: self._ids(self.length // 2),
    "pixel_values_videos": lambda self: self._video(),
    "pixel_values images image flat_pixel_values prompt_pixel_values prompt_masks": lambda self: self._image(),
    "input_values": lambda self: self._values(),
    "input_features": lambda self: self._features(),
    "inputs_embeds hidden_states encoder_hidden_states decoder_inputs_embeds query_embeds query_states": (
        lambda self: self._randn(self.length, self._width())
    ),
    "attention_mask": lambda self: torch.ones(_BATCH, self.length, dtype=torch.long),
    "position_ids": lambda self: torch.arange(self.length).expand(_BATCH, self.length),
    "inputs": lambda self: self._randn(self.length, self.find("d_model", default=64)),
    "past_values": lambda self: self._series(),
    "past_values_padding": lambda self: torch.zeros(_BATCH, getattr(self.config, "context_length", 32)),
    "freq": lambda self: torch.zeros(_BATCH, 1, dtype=torch.long),
    "bbox": lambda self: self._boxes(),
    "flattened_patches": lambda self: self._patches(),
    "visual_feats": lambda self: self._randn(10, self.find("visual_feat_dim", default=2048)),
    "visual_pos": lambda self: torch.rand(_BATCH, 10, 4, generator=self.random),
    "states": lambda self: self._states(),
    "spectrogram": lambda self: self._randn(20, self.find("model_in_dim", "num_mel_bins", default=80)),
    "grid_thw image_grid_thw": lambda self: torch.tensor([[1, 4, 4], [1, 4, 4]]),
}
