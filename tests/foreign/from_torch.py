"""Networks of torch.nn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .registry import Built, Networks, tokens

__all__ = ["register"]


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


def register(networks: Networks) -> None:
    """Add them to ``networks``."""

    def recurrent(name: str, kind: type[nn.RNNBase], layers: int, **options: Any) -> None:
        @networks.add("torch", name)
        def builder(full: bool) -> Built:
            return Recurrent(kind, 256 if full else 24, layers, **options), (tokens(64 if full else 11),), {}

    recurrent("bilstm_tagger", nn.LSTM, 1, bidirectional=True)
    recurrent("lstm_stack", nn.LSTM, 3, dropout=0.2)
    recurrent("lstm_projected", nn.LSTM, 2, proj_size=8)
    recurrent("gru_stack", nn.GRU, 2, bidirectional=True, dropout=0.1)
    recurrent("rnn_stack", nn.RNN, 2, nonlinearity="relu")

    @networks.add("torch", "transformer")
    def transformer(full: bool) -> Built:
        width, heads, layers = (512, 8, 6) if full else (32, 4, 2)
        model = nn.Transformer(width, heads, layers, layers, 4 * width, batch_first=True)
        return model, (torch.randn(2, 11, width), torch.randn(2, 7, width)), {}

    @networks.add("torch", "transformer_encoder")
    def transformer_encoder(full: bool) -> Built:
        width, heads, layers = (512, 8, 6) if full else (32, 4, 2)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, activation="gelu")
        return nn.TransformerEncoder(layer, layers), (torch.randn(2, 11, width),), {}
