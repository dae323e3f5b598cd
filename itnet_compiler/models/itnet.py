"""A network of integral transforms over one domain or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..nn.block import ITNetBlock
from ..nn.transform import IntegralTransform
from .encoders import Encoded

__all__ = ["ITNet"]


class ITNet(nn.Module):
    """Images, tokens and point sets by the same operator: after the idea of ITNet (arXiv 2606.19538), of which only the
    abstract was at hand, so that every choice of architecture here is ours.

    Each modality m has an encoder, which gives a function f_m at points p with a measure of total 1. Several modalities
    are one function on the union of their domains, with the mean of their measures, and an embedding that says which is
    which:

        f = ∪_m (f_m + e_m),   μ = Σ_m μ_m / (number of modalities)
        f ← block_l(f),        l = 1 … depth:  f + W·(T(norm f) ⊙ silu(G·norm f)),  then f + MLP(norm f)
        output = head(∫ norm f dμ),  or f itself where there is no head

    where T is the integral transform. With ``shared``, all blocks use the same T.

    Args:
        encoders: Modality → encoder (``Patches``, ``Tokens``, ``Points``, or a module with ``axes`` that gives an
            ``Encoded``).
        dim: Features.
        depth: Blocks.
        heads: Of each transform.
        outputs: Numbers that the head gives for a sample; None for no head.
        shared: Whether all blocks share one transform.
        **options: Of ``IntegralTransform``.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        dim: int,
        *,
        depth: int = 4,
        heads: int = 4,
        outputs: int | None = None,
        shared: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if not encoders:
            raise InputError("a network without encoders", remedy="give at least one, by the name of its modality")
        self.encoders = nn.ModuleDict(encoders)
        self.axes = max(int(encoder.axes) for encoder in encoders.values())  # type: ignore[arg-type]
        self.embeddings = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(dim)) for name in encoders})
        options = {"axes": self.axes} | options
        one = IntegralTransform(dim, heads, **options) if shared else None
        self.blocks = nn.ModuleList(ITNetBlock(dim, heads, transform=one, **options) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = None if outputs is None else nn.Linear(dim, outputs)

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """Run the network.

        Args:
            inputs: Modality → what its encoder takes: a tensor, a tuple of arguments, or a dictionary of keywords.

        Returns:
            (B, outputs), or (B, points of all modalities in the order of ``inputs``, dim) where there is no head.

        Raises:
            InputError: for no input, or a modality without encoder.
        """
        encoded = self.encode(inputs)
        features = encoded.features
        for block in self.blocks:
            features = block(features, positions=encoded.positions, weights=encoded.weights)
        features = self.norm(features)
        if self.head is None:
            return features
        return self.head((encoded.weights.to(features.dtype).unsqueeze(-1) * features).sum(1))

    def encode(self, inputs: Mapping[str, Any]) -> Encoded:
        """The function on the union of all domains."""
        unknown = set(inputs) - set(self.encoders)
        if unknown or not inputs:
            raise InputError(
                f"modalities {', '.join(sorted(unknown)) or 'none'} without encoder" if unknown else "no input",
                remedy=f"give some of {', '.join(self.encoders)}",
            )
        parts = [self._encoded(name, given) for name, given in inputs.items()]
        batch = max(part.features.shape[0] for part in parts)
        features = torch.cat([part.features.expand(batch, -1, -1) for part in parts], 1)
        positions = torch.cat([part.positions.float().expand(batch, -1, -1) for part in parts], 1)
        weights = torch.cat([part.weights.expand(batch, -1) / len(parts) for part in parts], 1)
        return Encoded(features, positions, weights)

    def _encoded(self, name: str, given: Any) -> Encoded:
        encoder = self.encoders[name]
        if isinstance(given, Mapping):
            found = encoder(**given)
        else:
            found = encoder(*given) if isinstance(given, tuple) else encoder(given)
        short = self.axes - found.positions.shape[-1]
        positions = F.pad(found.positions, (0, short)) if short else found.positions
        return Encoded(found.features + self.embeddings[name], positions, found.weights)
