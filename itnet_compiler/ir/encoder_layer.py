"""Family ``softmax``: a whole transformer encoder layer, as torch's native operator computes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from .domain import Domain, Keys
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .projected_softmax import ProjectedSoftmax, attention_work

__all__ = ["EncoderLayer"]

ACTIVATIONS = {"relu": torch.relu, "gelu": gelu}


@dataclass(frozen=True)
class EncoderLayer(Kernel):
    """Self-attention over all positions, then a feed-forward network at each, with residuals and normalisation.

    With A the attention of ``ProjectedSoftmax``, N_1 and N_2 layer normalisations with weight and bias, and
    F(x) = W_2 a(W_1 x + b_1) + b_2:

        z_i = N_1(f_i + A(f)_i)            y_i = N_2(z_i + F(z_i))
        z_i = f_i + A(N_1(f))_i            y_i = z_i + F(N_2(z_i))         with ``norm_first``

    The kernel K is that of A; all else is pointwise in position. Operands, as those of
    ``aten._transformer_encoder_layer_fwd``: those of A, then ``norm_weight_1``, ``norm_bias_1``, ``norm_weight_2``,
    ``norm_bias_2``, ``ffn_weight_1`` W_1, ``ffn_bias_1``, ``ffn_weight_2`` W_2, ``ffn_bias_2`` and ``mask``.

    Attributes:
        heads: Heads of A.
        mask: What the mask is over, as in A.
        activation: a: ``relu`` or ``gelu``.
        norm_first: Whether normalisation comes before attention and feed-forward network.
        eps: Of both normalisations.
    """

    family: ClassVar[str] = "softmax"
    value_map: ClassVar[str] = "projected features"

    heads: int = 1
    mask: str = ""
    activation: str = "relu"
    norm_first: bool = False
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        _ = self.attention  # refuses an unknown mask

    @property
    def attention(self) -> ProjectedSoftmax:
        """A."""
        return ProjectedSoftmax(self.heads, self.mask)

    def properties(self, domain: Domain) -> frozenset[str]:
        """None, as for A."""
        return frozenset()

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """y, (B, T, D)."""
        source = operands["input"]
        if self.norm_first:
            mixed = source + self._attend(domain, self._normalised(1, source, operands), operands)
            return mixed + self._feed_forward(self._normalised(2, mixed, operands), operands)
        mixed = self._normalised(1, source + self._attend(domain, source, operands), operands)
        return self._normalised(2, mixed + self._feed_forward(mixed, operands), operands)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K of the attention, (B, H, T, T)."""
        source = operands["input"]
        features = self._normalised(1, source, operands) if self.norm_first else source
        return self.attention.kernel_matrix(domain, **dict(operands) | {"input": features})

    def _attend(self, domain: Domain, features: Tensor, operands: Operands) -> Tensor:
        return self.attention.evaluate(domain, **dict(operands) | {"input": features})

    def _normalised(self, number: int, features: Tensor, operands: Operands) -> Tensor:
        weight, bias = operands[f"norm_weight_{number}"], operands[f"norm_bias_{number}"]
        return layer_norm(features, weight.shape, weight, bias, self.eps)

    def _feed_forward(self, features: Tensor, operands: Operands) -> Tensor:
        hidden = linear(features, operands["ffn_weight_1"], operands["ffn_bias_1"])
        return linear(ACTIVATIONS[self.activation](hidden), operands["ffn_weight_2"], operands["ffn_bias_2"])

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return replace(self, heads=2)._sample(batch=4, length=5, width=3, hidden=7)

    def _sample(self, batch: int, length: int, width: int, hidden: int) -> Sample:
        features = self.heads * width
        draws = self.attention.draws(batch, length, width)
        draws |= {f"norm_{kind}_{number}": Draw((features,)) for number in (1, 2) for kind in ("weight", "bias")}
        draws |= {
            "ffn_weight_1": Draw((hidden, features), deviation=features**-0.5),
            "ffn_bias_1": Draw((hidden,)),
            "ffn_weight_2": Draw((features, hidden), deviation=hidden**-0.5),
            "ffn_bias_2": Draw((features,)),
        }
        draws |= self.attention.mask_draws(batch, length)
        return Sample(Spec(self, Keys(), "transformer encoder layer", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Attention; 4 flops for each position and entry of W_1; about 20 for each feature of the pointwise rest."""
        batch, length, features = (int(size) for size in operands["input"].shape)
        matrix = operands["ffn_weight_1"]
        pointwise = 20 * features + 6 * int(matrix.shape[0])
        attention = attention_work(self.heads, operands, outputs)
        return attention + Work(batch * length * (4 * int(matrix.numel()) + pointwise), 0)

    @classmethod
    def samples(cls) -> list[Sample]:
        return [
            cls(2)._sample(2, 7, 4, 9),
            cls(1, activation="gelu")._sample(3, 5, 7, 4),
            cls(2, norm_first=True)._sample(2, 7, 4, 9),
            cls(4, activation="gelu", norm_first=True, eps=1e-3)._sample(1, 63, 3, 5),
            cls(2)._sample(7, 1, 2, 1),
            cls(2)._sample(0, 7, 4, 3),
            *(cls(2, mask)._sample(3, 7, 4, 6) for mask in ("pairs", "keys", "full")),
            cls(2, "keys", "gelu", norm_first=True)._sample(3, 8, 4, 6),
        ]
