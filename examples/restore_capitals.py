"""A bidirectional LSTM learns to restore capital letters; it is unified half-way and goes on learning.

    pip install itnet-compiler
    python examples/restore_capitals.py

Trained on the standard library's own docstrings. Shows that the optimizer, the checkpoint and the original object stay
usable: the unified model shares its weights with the original.
"""

from __future__ import annotations

import importlib
import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import itnet

MODULES = ("argparse", "collections", "datetime", "decimal", "difflib", "logging", "optparse", "pickle", "unittest")
LENGTH = 48


class Capitals(nn.Module):
    """For every character the probability that it was a capital letter."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.characters = nn.Embedding(128, width)
        self.lstm = nn.LSTM(width, 2 * width, batch_first=True, bidirectional=True)
        self.capital = nn.Linear(4 * width, 1)

    def forward(self, text: Tensor) -> Tensor:
        """``text``: character codes [batch, length]; logits of the same shape."""
        states, _ = self.lstm(self.characters(text))
        return self.capital(states).squeeze(-1)


def corpus() -> tuple[Tensor, Tensor]:
    """Character codes of lower-cased docstrings, and which were capitals: both [lines, LENGTH]."""
    members = (
        inspect.getdoc(member) or ""
        for name in MODULES
        for _, member in inspect.getmembers(importlib.import_module(name), lambda item: inspect.isclass(item))
        if getattr(member, "__module__", "").split(".")[0] == name
    )
    text = " ".join(" ".join(members).encode("ascii", "ignore").decode().split())
    text = text[: len(text) // LENGTH * LENGTH]
    codes = torch.tensor([ord(character) for character in text.lower()]).view(-1, LENGTH)
    return codes, torch.tensor([character.isupper() for character in text]).float().view(-1, LENGTH)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, codes: Tensor, capitals: Tensor, epochs: int) -> float:
    """The mean loss of the last epoch."""
    losses = []
    for _ in range(epochs):
        losses.clear()
        for batch in torch.randperm(len(codes)).split(32):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(codes[batch]), capitals[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def main() -> None:
    """Train, unify, train on, and go back to the plain network."""
    torch.manual_seed(0)
    codes, capitals = corpus()
    model = Capitals()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    before = train(model, optimizer, codes, capitals, epochs=2)

    unified = itnet.unify(model, codes[:4])
    print(unified.ir)
    assert [node.family for node in unified.integrals.values()] == ["gated"], "one node, whatever the length"

    after = train(unified, optimizer, codes, capitals, epochs=4)  # the same optimizer: these are the same parameters
    print(f"mean loss {before:.4f} before unify, {after:.4f} after four more epochs")
    assert after < before

    fresh = Capitals()
    fresh.load_state_dict(unified.state_dict())
    sentence = "the quick brown fox meets ada lovelace. then python prints it."
    text = torch.tensor([[ord(character) for character in sentence]])
    with torch.no_grad():
        logits = unified(text)  # one sentence of another length
        assert torch.equal(logits, fresh(text)), "the checkpoint loads into the plain network"
        assert torch.equal(logits, model(text)), "the original has learned along"
    flags = (logits[0] > 0).tolist()
    print("".join(c.upper() if flag else c for c, flag in zip(sentence, flags, strict=True)))


if __name__ == "__main__":
    main()
