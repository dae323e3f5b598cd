"""Family ``softmax``: self-attention whose kernel holds the projections, as torch's native operator computes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import linear

from .domain import Domain, Keys
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .softmax import Softmax, normalised

__all__ = ["MASKS", "ProjectedSoftmax", "attention_work"]

# Mask of the operator by ``mask_type``: 0, 1, 2.
MASKS = ("pairs", "keys", "full")
WEIGHTS = ("", "mean", "heads")


@dataclass(frozen=True)
class ProjectedSoftmax(Kernel):
    """Multi-head self-attention from features to features, projections included.

    With features f of shape (B, T, D), cut into H heads of d = D / H once projected; the index of the head is left out:

        s(i, j) = ⟨W_q f_i + b_q, W_k f_j + b_k⟩ / √d               −∞ where the mask is set
        K(i, j) = exp(s(i, j)) / Σ_j' exp(s(i, j'))
        y_i     = W_o · concat_h(Σ_j K(i, j) · (W_v f_j + b_v)) + b_o

    A query all of whose keys are masked gives NaN, as in the operator.

    Operands, as those of ``aten._native_multi_head_attention``: ``input`` f, at once query, key and value;
    ``qkv_weight`` (3·D, D) and ``qkv_bias`` (3·D), which stack W_q, W_k, W_v; ``proj_weight`` W_o and ``proj_bias``;
    ``mask``, True, or a number that is not zero, where j is left out.

    Attributes:
        heads: H.
        mask: What the mask is over: ``pairs`` (T, T), ``keys`` (B, T) or ``full`` (B, H, T, T); empty without one.
        weights: Second output: ``heads``, K itself (B, H, T, T); ``mean``, its mean over the heads; empty for none.
    """

    family: ClassVar[str] = "softmax"
    value_map: ClassVar[str] = "projected features"

    heads: int = 1
    mask: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if self.mask not in ("", *MASKS):
            raise ValueError(f"mask {self.mask!r} is none of {', '.join(MASKS)}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights {self.weights!r} are none of mean, heads")

    def properties(self, domain: Domain) -> frozenset[str]:
        """None: weights and values both depend on the input, and the output is projected."""
        return frozenset()

    def evaluate(self, domain: Domain, **operands: Any) -> Any:
        """y, or (y, weights)."""
        matrix = self.kernel_matrix(domain, **operands)
        output = self.apply_matrix(domain, matrix, **operands)
        if not self.weights:
            return output
        return output, matrix.mean(1) if self.weights == "mean" else matrix

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, (B, H, T, T)."""
        query, key, _ = self._projected(operands)
        return normalised(
            _SCORED.scores(domain, query=query, key=key, mask=self._allowed(operands.get("mask"))), zero=False
        )

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """W_o · concat_h(Σ_j K(i, j)·v_j) + b_o, (B, T, D)."""
        query, _, value = self._projected(operands)
        mixed = _SCORED.apply_matrix(domain, matrix, query=query, value=value)
        return linear(mixed.transpose(1, 2).flatten(2), operands["proj_weight"], operands["proj_bias"])

    def _projected(self, operands: Operands) -> list[Tensor]:
        """Queries, keys and values, each (B, H, T, d)."""
        stacked = linear(operands["input"], operands["qkv_weight"], operands["qkv_bias"])
        width = stacked.shape[-1] // (3 * self.heads)
        return [part.unflatten(-1, (self.heads, width)).transpose(1, 2) for part in stacked.chunk(3, -1)]

    def _allowed(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        allowed = ~mask.bool()
        return allowed[:, None, None] if self.mask == "keys" else allowed

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return replace(self, heads=2)._sample(batch=4, length=5, width=3)

    def draws(self, batch: int, length: int, width: int) -> dict[str, Draw]:
        """Operands of (batch, length, heads · width) but for the mask, with scores that do not saturate."""
        features = self.heads * width
        return {
            "input": Draw((batch, length, features)),
            "qkv_weight": Draw((3 * features, features), deviation=features**-0.5),
            "qkv_bias": Draw((3 * features,)),
            "proj_weight": Draw((features, features), deviation=features**-0.5),
            "proj_bias": Draw((features,)),
        }

    def mask_draws(self, batch: int, length: int, kind: str = "mask") -> dict[str, Draw]:
        """The operand ``mask``, where there is one."""
        shapes = {"pairs": (length, length), "keys": (batch, length), "full": (batch, self.heads, length, length)}
        return {"mask": Draw(shapes[self.mask], kind)} if self.mask else {}

    def _sample(self, batch: int, length: int, width: int, kind: str = "mask") -> Sample:
        draws = self.draws(batch, length, width) | self.mask_draws(batch, length, kind)
        return Sample(Spec(self, Keys(), "attention", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Of ``attention_work``."""
        return attention_work(self.heads, operands, outputs)

    @classmethod
    def samples(cls) -> list[Sample]:
        return [
            cls(1)._sample(2, 7, 4),
            cls(2)._sample(3, 7, 5),
            cls(4)._sample(1, 63, 8),
            cls(2)._sample(7, 1, 1),
            cls(2)._sample(0, 7, 4),
            cls(2)._sample(3, 0, 4),
            *(cls(2, mask)._sample(3, 7, 4) for mask in MASKS),
            cls(2, "keys")._sample(2, 9, 3, kind="bool"),
            cls(2, "full", "mean")._sample(2, 7, 4),
            cls(4, weights="mean")._sample(2, 7, 3),
            cls(2, weights="heads")._sample(3, 5, 8),
            cls(2, "keys", "heads")._sample(3, 8, 4),
        ]


# Written out, so that a query without keys gives 0/0; the scale is 1/√d.
_SCORED = Softmax()


def attention_work(heads: int, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
    """Four projections of every position; 4·d + 5 flops for each pair of positions and head. Bytes go in or out."""
    batch, length, features = (int(size) for size in operands["input"].shape)
    flops = batch * length * 8 * features**2 + batch * length**2 * (4 * features + 5 * heads)
    moved = [*operands.values(), *outputs]
    return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))
