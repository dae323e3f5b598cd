"""What the integration tests share: comparing, training, counting what is computed again, small networks."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from itnet_compiler.unified import program_of
from tests import foreign


def third_party(name: str) -> Any:
    """Import a library that need not be installed, and not what it says on the way."""
    foreign.prepare()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip(name)
    for logger in ("pytorch_lightning", "accelerate", "bitsandbytes"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    return module


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def same(first: Any, second: Any, rounding: float = 0.0) -> None:
    """The tensors in two values are equal to the last bit, or up to ``rounding``; NaN included."""
    ours, theirs = tensors(first), tensors(second)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding, equal_nan=True)


def same_weights(first: nn.Module, second: nn.Module) -> None:
    """Two models hold the same tensors under the same names."""
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, equal_nan=True, msg=name)


def call(model: Callable[..., Any], *args: Any, seed: int = 0, **kwargs: Any) -> Any:
    """The model's output after seeding."""
    torch.manual_seed(seed)
    return model(*args, **kwargs)


def total(output: Any) -> Tensor:
    """One number that depends on all floating-point outputs."""
    found = [t for t in tensors(output) if t.is_floating_point() and t.requires_grad]
    return torch.stack([t.float().pow(2).mean() for t in found]).sum()


def gradients(model: nn.Module, *args: Any, seed: int = 0, **kwargs: Any) -> dict[str, Tensor]:
    """Gradients of ``total`` by parameter name."""
    model.zero_grad()
    total(call(model, *args, seed=seed, **kwargs)).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same_gradients(first: nn.Module, second: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The two models have the same gradients, for the same parameters."""
    expected, found = gradients(first, *args, **kwargs), gradients(second, *args, **kwargs)
    assert expected.keys() == found.keys()
    same(expected, found)


class _Counter(TorchDispatchMode):
    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator, self.count = operator, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == self.operator
        return func(*args, **(kwargs or {}))


def recomputed(model: nn.Module, *args: Any, operator: str = "native_layer_norm", **kwargs: Any) -> int:
    """How often the backward pass runs a forward operator again: zero unless something is checkpointed."""
    loss = total(call(model, *args, **kwargs))
    with _Counter(operator) as counter:
        loss.backward()
    model.zero_grad()
    return counter.count


def through_graphs(model: nn.Module) -> bool:
    """Whether all of the model's calls so far ran a graph that was captured whole."""
    program = program_of(model)
    return not program.fallbacks and all(not variant.refused for variant in program.variants)


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Any], Tensor],
    batches: list[Any],
    optimizer: Callable[[Any], torch.optim.Optimizer],
    *,
    steps: int = 50,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    clip: float | None = None,
    accumulate: int = 1,
) -> Tensor:
    """Train in place, as people write the loop; the loss of every step."""
    torch.manual_seed(0)
    model.train()
    optimize = optimizer([p for p in model.parameters() if p.requires_grad])
    scheduler = schedule(optimize) if schedule else None
    losses = []
    for step in range(steps):
        parts = []
        for part in range(accumulate):
            loss = loss_of(model, batches[(step * accumulate + part) % len(batches)])
            (loss / accumulate).backward()
            parts.append(loss.detach())
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimize.step()
        optimize.zero_grad()
        if scheduler is not None:
            scheduler.step()
        losses.append(torch.stack(parts).mean())
    return torch.stack(losses)


def trains_alike(original: nn.Module, unified: nn.Module, *how: Any, **options: Any) -> None:
    """Both learn, with the same losses and final weights; what the original differs by from run to run is allowed."""
    start = copy.deepcopy(original)
    expected, found = train(original, *how, **options), train(unified, *how, **options)
    assert expected[-5:].mean() < 0.9 * expected[:5].mean(), "nothing was learnt, which would prove nothing"
    weights, theirs = tensors(original.state_dict()), tensors(unified.state_dict())
    assert list(original.state_dict()) == list(unified.state_dict())
    pairs = [(expected, found), *zip(weights, theirs, strict=True)]
    if all(torch.equal(a, b) for a, b in pairs):
        return
    again = [train(start, *how, **options), *tensors(start.state_dict())]
    for (a, b), c in zip(pairs, again, strict=True):
        assert (a - b).abs().max() <= (a - c).abs().max()


# ── networks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Block(nn.Module):
    """A residual block of a transformer with convolution, attention and dropout; channels last."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Conv1d(width, width, 3, padding=1)
        self.qkv, self.out, self.drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        q, k, v = (part[:, None] for part in self.qkv(self.norm(x)).chunk(3, -1))
        return x + self.drop(self.out(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]))


class Stack(nn.Module):
    """Repeated blocks; with ``branching``, Python between them asks for values, which no graph can."""

    def __init__(self, depth: int = 2, width: int = 16, branching: bool = False) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(5, width), nn.ModuleList(Block(width) for _ in range(depth))
        self.head, self.branching = nn.Linear(width, 4), branching

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
            if self.branching and x.abs().mean() > 1000:
                x = x / 2
        return self.head(x.mean(1))


def stack(**options: Any) -> tuple[Stack, Tensor]:
    """A seeded stack and its input."""
    torch.manual_seed(0)
    return Stack(**options), torch.randn(3, 7, 5)


def ids(rows: int = 2, length: int = 9, vocabulary: int = 96) -> Tensor:
    """Token ids, none of them special."""
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


def language_model(name: str, **changes: Any) -> nn.Module:
    """A tiny seeded model of transformers, in eval mode."""
    transformers = third_party("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    wide = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    special = dict(vocab_size=96, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    kind, config = {
        "gpt2": ("GPT2", dict(special, n_embd=32, n_layer=2, n_head=2, n_positions=64)),
        "llama": ("Llama", dict(special, **wide, num_key_value_heads=1, max_position_embeddings=64)),
        "bert": ("Bert", dict(wide, vocab_size=96, pad_token_id=0, max_position_embeddings=64)),
        "mamba": ("Mamba", dict(special, hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=2)),
        "t5": (
            "T5",
            dict(
                vocab_size=96,
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=1,
                num_heads=2,
                pad_token_id=0,
                eos_token_id=2,
                decoder_start_token_id=0,
            ),
        ),
    }[name]
    suffix = {"bert": "ForSequenceClassification", "gpt2": "LMHeadModel", "t5": "ForConditionalGeneration"}
    model_class = getattr(transformers, kind + suffix.get(name, "ForCausalLM"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(getattr(transformers, f"{kind}Config")(**config | changes)).eval()
