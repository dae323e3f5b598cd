"""``itnet demo``: a network as people write them reads handwritten digits, is unified, and both are fine-tuned.

Deterministic up to the last digits of floating-point sums: fixed seeds, one thread, data bundled with scikit-learn.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ItnetError
from .unify import unify

__all__ = ["DigitReader", "run"]

EPOCHS, FURTHER_EPOCHS = 8, 3
# Of the largest value: float32 sums in another order.
_ROUNDING = 1e-5


class Attention(nn.Module):
    """Multi-head self-attention written out, as most networks have it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: [batch, tokens, width]; returns the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.scale
        y = self.dropout(scores.softmax(dim=-1)) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Reader(nn.Module):
    """A gated recurrent unit, step by step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.given, self.carried = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: [batch, tokens, width]; returns the state after each token, the same shape."""
        state, states = x.new_zeros(x.shape[0], x.shape[2]), []
        for t in range(x.shape[1]):
            r, z, n = self.given(x[:, t]).chunk(3, dim=-1)
            r_state, z_state, n_state = self.carried(state).chunk(3, dim=-1)
            r, z = torch.sigmoid(r + r_state), torch.sigmoid(z + z_state)
            state = (1 - z) * torch.tanh(n + r * n_state) + z * state
            states.append(state)
        return torch.stack(states, dim=1)


class Fading(nn.Module):
    """A moving average of what came before, with a learned rate for each feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(-2, 2, width))

    def forward(self, x: Tensor) -> Tensor:
        """``x``: [batch, tokens, width]; returns the same shape."""
        keep, state, states = torch.sigmoid(self.rate), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            state = keep * state + (1 - keep) * x[:, t]
            states.append(state)
        return torch.stack(states, dim=1)


class DigitReader(nn.Module):
    """Convolutions find strokes, attention relates them, two loops read them pixel by pixel."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.LayerNorm(width)
        self.attention = Attention(width, heads=4, dropout=0.1)
        self.dropout = nn.Dropout(0.1)
        self.reader, self.fading = Reader(width), Fading(width)
        self.classify = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``images``: [batch, 1, 8, 8]; returns logits [batch, classes]."""
        x = self.conv2(F.relu(self.norm1(self.conv1(images))))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.dropout(self.attention(self.norm2(tokens)))
        tokens = tokens + self.reader(tokens) + self.fading(tokens)
        return self.classify(tokens.mean(1))


def run(stream: TextIO) -> int:
    """Run the demo and write what happens to ``stream``; returns 0, or 1 if the unified model differs."""

    def say(text: str = "") -> None:
        stream.write(text + "\n")
        stream.flush()

    with _one_thread():
        train_x, train_y, test_x, test_y = _digits()
        torch.manual_seed(0)
        model = DigitReader()
        say(f"1. Train convolutions, attention written out and two loops on {len(train_y):,} handwritten digits")
        started = time.perf_counter()
        losses = _train(model, train_x, train_y, epochs=EPOCHS, rate=3e-3)
        right = _right(model, test_x, test_y)
        say(f"   last loss {losses[-1]:.3f}, {right} of {len(test_y)} test digits right   ({_seconds(started)})")

        say("\n2. Unify it: every layer that moves information between positions becomes one integral")
        started = time.perf_counter()
        original = copy.deepcopy(model)  # unified shares its weights with model, so the comparison needs its own
        unified = unify(model, test_x[:4])
        say(_indent(str(unified)) + f"\n   ({_seconds(started)}, verification included)")

        say("\n3. The verified program")
        say(_indent(str(unified.ir)))

        say("\n4. The same function")
        with torch.no_grad():
            expected, found = original(test_x), unified(test_x)
        same_logits = torch.allclose(expected, found, rtol=_ROUNDING, atol=_ROUNDING)
        right_unified = _right(unified, test_x, test_y)
        say(f"   test digits right: {right} before, {right_unified} after")
        say(f"   logits: {_verdict(expected, found)}")
        before, after = _times(original, unified, test_x[:1])
        say(f"   one digit: {1e3 * before:.1f} ms before, {1e3 * after:.1f} ms after ({before / after:.1f} ×)")

        say("\n5. Fine-tune both on digits turned by 90 degrees, from the same seed, with dropout and batch statistics")
        turned_x, turned_test_x = train_x.rot90(dims=(2, 3)), test_x.rot90(dims=(2, 3))
        losses = _train(original, turned_x, train_y, epochs=FURTHER_EPOCHS, rate=2e-3)
        losses_unified = _train(unified, turned_x, train_y, epochs=FURTHER_EPOCHS, rate=2e-3)
        say("   step   original   unified")
        for step in (*range(0, len(losses), 21), len(losses) - 1):
            say(f"   {step:4d}   {losses[step]:8.4f}  {losses_unified[step]:8.4f}")
        state, state_unified = original.state_dict(), unified.state_dict()
        weights = [torch.cat([value.double().flatten() for value in part.values()]) for part in (state, state_unified)]
        turned = [_right(part, turned_test_x, test_y) for part in (original, unified)]
        say(f"   turned test digits right: {turned[0]} and {turned[1]} of {len(test_y)}")
        say(f"   losses: {_verdict(torch.tensor(losses), torch.tensor(losses_unified))}")
        say(f"   weights afterwards: {_verdict(*weights)}")

    close = torch.allclose(torch.tensor(losses), torch.tensor(losses_unified), rtol=1e-2, atol=1e-3)
    if same_logits and right == right_unified and list(state) == list(state_unified) and close:
        return 0
    say("\nThe unified network does not compute what the original computes. This is a bug: please report it.")
    return 1


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ItnetError(
            "the demo reads the handwritten digits that scikit-learn bundles, and scikit-learn is not installed",
            remedy='pip install "itnet-compiler[demo]"',
        ) from None
    bundle = load_digits()
    images = torch.from_numpy(bundle.images).float().div(8).sub(1).unsqueeze(1)
    labels = torch.from_numpy(bundle.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1344], order[1344:]
    return images[train], labels[train], images[test], labels[test]


def _train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, rate: float) -> list[float]:
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def _times(original: nn.Module, unified: nn.Module, images: Tensor, calls: int = 15) -> tuple[float, float]:
    """Seconds a call of either takes, medians of calls in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(calls):
        for model, taken in zip((original, unified), seconds, strict=True):
            started = time.perf_counter()
            model(images)
            taken.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    return int((model(images).argmax(1) == labels).sum())


def _verdict(before: Tensor, after: Tensor) -> str:
    if torch.equal(before, after):
        return "equal bit for bit"
    if float((before - after).abs().max()) <= _ROUNDING * float(before.abs().max()):
        return "equal up to rounding"
    return f"differ by {100 * float((before - after).norm() / before.norm()):.3f} %: rounding, carried on by training"


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is small, and sums then have the same order everywhere
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def _seconds(started: float) -> str:
    return f"{time.perf_counter() - started:.1f} s"


def _indent(text: str) -> str:
    return "\n".join(f"   {line}" if line else "" for line in text.splitlines())
