"""Attention as people write it: after the styles of minGPT, timm, fairseq, ESM, T5, Swin, GPT-NeoX and others.

Every program takes q (B, H, L, D), k and v (B, H, S, D) unless it says otherwise, and computes softmax attention. They
are pieces of a larger forward: their arguments are results of other operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["PROGRAMS", "Program"]

B, H, L, S, D = 2, 3, 5, 7, 4


@dataclass(frozen=True)
class Program:
    """A function of tensors.

    Attributes:
        function: The program.
        shapes: Of its arguments: q, k, v and more; ``bool`` arguments are marked so.
        count: Attention nodes in it.
        square: Whether it needs as many keys as queries.
    """

    name: str
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    count: int = 1

    def __str__(self) -> str:
        return self.name


PROGRAMS: dict[str, Program] = {}

Q, K = (B, H, L, D), (B, H, S, D)


def program(*shapes: tuple[int, ...], kinds: str = "", count: int = 1) -> Callable[[Callable[..., Any]], Any]:
    """Register a function; ``kinds`` has a letter an argument: f(loat), b(ool), m(ask of 0 and −∞)."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        given = shapes or (Q, K, K)
        PROGRAMS[name] = Program(name, function, given, tuple(kinds or "f" * len(given)), count)
        return function

    return register


MASK = (B, 1, L, S)


# ── products


@program()
def matmul_operator(q, k, v):
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


@program()
def matmul_scaled(q, k, v):
    return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(2, 3)) * D**-0.5, dim=-1), v)


@program()
def divided_by_root(q, k, v):
    return torch.matmul(F.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)) / math.sqrt(D), dim=3), v)


@program()
def query_scaled(q, k, v):
    return ((q * D**-0.5) @ k.mT).softmax(-1) @ v


@program()
def key_scaled(q, k, v):
    return (q @ (k / math.sqrt(D)).mT).softmax(-1) @ v


@program()
def root_on_both(q, k, v):
    scale = D**-0.25
    return ((q * scale) @ (k * scale).transpose(-1, -2)).softmax(-1) @ v


@program()
def scale_from_a_tensor(q, k, v):
    return (q @ k.mT / torch.sqrt(torch.tensor(4.0))).softmax(-1) @ v


@program((B * H, L, D), (B * H, S, D), (B * H, S, D))
def bmm(q, k, v):
    return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), 2), v)


@program()
def bmm_of_flattened_heads(q, k, v):
    q, k, v = (t.reshape(B * H, -1, D) for t in (q, k, v))
    return torch.bmm(torch.bmm(q * 0.5, k.transpose(1, 2)).softmax(-1), v).view(B, H, L, D)


@program((B * H, L, D), (B * H, S, D), (B * H, S, D), (B * H, L, S))
def baddbmm(q, k, v, mask):
    return torch.bmm(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=0.5).softmax(-1), v)


@program((L, D), (S, D), (S, D))
def two_axes(q, k, v):
    return torch.mm(torch.softmax(torch.mm(q, k.t()), 1), v)


@program((L, D), (S, D), (S, D))
def linear_as_product(q, k, v):
    return F.linear(q, k).softmax(-1) @ v


@program((D,), (S, D), (S, D))
def one_query(q, k, v):
    return torch.softmax(k @ q, 0) @ v


@program()
def einsum(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


@program()
def einsum_ellipsis(q, k, v):
    return torch.einsum("...ij,...jd->...id", (torch.einsum("...id,...jd->...ij", q, k) * 0.5).softmax(-1), v)


@program((B, L, H, D), (B, S, H, D), (B, S, H, D))
def einsum_heads_behind(q, k, v):
    return torch.einsum("bhqs,bshd->bqhd", torch.einsum("bqhd,bshd->bhqs", q / 2, k).softmax(-1), v)


@program((L, B, H, D), (S, B, H, D), (S, B, H, D))
def einsum_heads_last(q, k, v):
    """Transformer-XL: scores (query, key, sample, head), softmax over axis 1."""
    return torch.einsum("ijbn,jbnd->ibnd", torch.einsum("ibnd,jbnd->ijbn", q, k).mul(0.5).softmax(1), v)


@program()
def product_and_sum(q, k, v):
    weights = (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1).softmax(-1)
    return (weights.unsqueeze(-1) * v.unsqueeze(2)).sum(3)


@program()
def keys_first(q, k, v):
    """Scores as (key, query), normalised over axis −2."""
    return (k @ q.mT).softmax(-2).transpose(-1, -2) @ v


@program()
def output_transposed(q, k, v):
    return (v.transpose(-1, -2) @ (q @ k.mT).softmax(-1).transpose(-1, -2)).transpose(-1, -2)


@program((B, D, L), (B, D, S), (B, D, S))
def channels_first(q, k, v):
    """SAGAN and non-local networks: bmm(v, attentionᵀ)."""
    attention = torch.softmax(torch.bmm(q.permute(0, 2, 1), k), dim=-1)
    return torch.bmm(v, attention.permute(0, 2, 1))


# ── heads


@program((B, L, H * D), (B, S, H * D), (B, S, H * D))
def heads_split_by_view(q, k, v):
    q, k, v = (t.view(B, -1, H, D).transpose(1, 2) for t in (q, k, v))
    y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
    return y.transpose(1, 2).contiguous().view(B, -1, H * D)


@program((B, L, 3 * H * D))
def fused_projection(qkv):
    """timm: one projection for q, k and v."""
    q, k, v = qkv.reshape(B, -1, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    attention = (q * 0.5) @ k.transpose(-2, -1)
    return (attention.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, -1, H * D)


@program((B, L, 3 * H * D))
def chunked_projection(qkv):
    q, k, v = (t.unflatten(-1, (H, D)).movedim(2, 1) for t in qkv.chunk(3, -1))
    return ((q @ k.mT / 2).softmax(-1) @ v).movedim(1, 2).flatten(2)


@program((L, B, H * D), (S, B, H * D), (S, B, H * D))
def fairseq(q, k, v):
    """Time first, heads folded into the batch."""
    q, k, v = (t.contiguous().view(-1, B * H, D).transpose(0, 1) for t in (q * 0.5, k, v))
    weights = F.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1, dtype=torch.float32).type_as(q)
    return torch.bmm(weights, v).transpose(0, 1).contiguous().view(-1, B, H * D)


@program((B, L, H * D), (B, S, H * D), (B, S, H * D), count=3)
def loop_over_heads(q, k, v):
    heads = []
    for q1, k1, v1 in zip(q.split(D, -1), k.split(D, -1), v.split(D, -1), strict=True):
        heads.append((q1 @ k1.transpose(1, 2) * 0.5).softmax(-1) @ v1)
    return torch.cat(heads, -1)


@program((B, 6, L, D), (B, 2, S, D), (B, 2, S, D))
def repeated_keys(q, k, v):
    """Llama: keys of a group of heads expanded."""

    def repeat(t):
        return t[:, :, None, :, :].expand(B, 2, 3, S, D).reshape(B, 6, S, D)

    return (q @ repeat(k).transpose(2, 3) * 0.5).softmax(-1) @ repeat(v)


@program((B, 6, L, D), (B, 2, S, D), (B, 2, S, D))
def interleaved_keys(q, k, v):
    k, v = k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1)
    return (q @ k.mT).softmax(-1) @ v


@program((B, 6, L, D), (B, 2, S, D), (B, 2, S, D))
def grouped_in_five_axes(q, k, v):
    q = q.view(B, 2, 3, L, D)
    return ((q @ k.unsqueeze(2).mT).softmax(-1) @ v.unsqueeze(2)).view(B, 6, L, D)


@program((B, 6, L, D), (B, 2, S, D), (B, 2, S, D))
def grouped_einsum(q, k, v):
    scores = torch.einsum("bkgld,bksd->bkgls", q.reshape(B, 2, 3, L, D), k)
    return torch.einsum("bkgls,bksd->bkgld", scores.softmax(-1), v).flatten(1, 2)


@program((B, H, L, D), (B, S, D), (B, S, D))
def one_key_head(q, k, v):
    return torch.einsum("bhij,bjd->bhid", torch.einsum("bhid,bjd->bhij", q, k).softmax(-1), v)


@program((B, L, H, D), (B, S, D), (B, S, D))
def falcon_one_key_head(q, k, v):
    scores = torch.matmul(q.transpose(1, 2), k.unsqueeze(1).transpose(-1, -2))
    return (scores.softmax(-1) @ v[:, None]).transpose(1, 2)


# ── masks


@program(Q, K, K, MASK, kinds="fffm")
def mask_added(q, k, v, mask):
    return (q @ k.mT * 0.5 + mask).softmax(-1) @ v


@program(Q, K, K, MASK, kinds="fffm")
def mask_added_before_scaling(q, k, v, mask):
    return ((q @ k.mT + mask) * 0.5).softmax(-1) @ v


@program(Q, K, K, MASK, kinds="fffb")
def masked_fill_infinite(q, k, v, mask):
    return (q @ k.mT * 0.5).masked_fill(mask, -math.inf).softmax(-1) @ v


@program(Q, K, K, MASK, kinds="fffb")
def masked_fill_in_place(q, k, v, mask):
    scores = q @ k.mT
    scores *= 0.5
    scores.masked_fill_(mask, float("-inf"))
    return scores.softmax(-1) @ v


@program(Q, K, K, MASK, kinds="fffb")
def masked_fill_before_scaling(q, k, v, mask):
    return ((q @ k.mT).masked_fill(mask, -math.inf) / 2).softmax(-1) @ v


@program(Q, K, K, MASK, kinds="fffb")
def masked_fill_large(q, k, v, mask):
    return (q @ k.mT).masked_fill(mask == 0, -1e9).softmax(-1) @ v


@program(Q, K, K, MASK, kinds="fffb")
def where_smallest(q, k, v, mask):
    scores = q @ k.mT
    return torch.where(mask, scores, torch.finfo(scores.dtype).min).softmax(-1) @ v


@program(Q, K, K, MASK, kinds="fffb")
def where_tensor(q, k, v, mask):
    scores = q @ k.mT
    least = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
    return torch.where(mask.to(torch.bool), scores.to(scores.dtype), least).softmax(-1) @ v


@program((B, H, L, D), (B, H, L, D), (B, H, L, D))
def causal_tril(q, k, v):
    """minGPT."""
    mask = torch.tril(torch.ones(L, L)).view(1, 1, L, L)
    scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    return F.softmax(scores.masked_fill(mask == 0, float("-inf")), dim=-1) @ v


@program((B, H, L, D), (B, H, L, D), (B, H, L, D))
def causal_triu(q, k, v):
    mask = torch.triu(torch.full((L, L), -math.inf, dtype=q.dtype), diagonal=1)
    return (q @ k.mT + mask).softmax(-1) @ v


@program((B, H, L, D), (B, H, L, D), (B, H, L, D))
def causal_arange(q, k, v):
    place = torch.arange(q.shape[2])
    return (q @ k.mT).masked_fill(place[None, :] > place[:, None], -math.inf).softmax(-1) @ v


@program((B, H, L, D), (B, H, L, D), (B, H, L, D))
def sliding_window(q, k, v):
    place = torch.arange(q.shape[2])
    distance = place[:, None] - place[None, :]
    return (q @ k.mT).masked_fill((distance < 0) | (distance >= 3), -1e9).softmax(-1) @ v


@program(Q, K, K, (B, S), kinds="fffb")
def padding(q, k, v, mask):
    return (q @ k.mT).masked_fill(mask[:, None, None, :], -1e9).softmax(-1) @ v


@program(Q, K, K, (B, S))
def padding_from_numbers(q, k, v, mask):
    bias = (1.0 - (mask > 0).to(q.dtype)[:, None, None, :]) * -10000.0
    return (q @ k.mT / 2 + bias).softmax(-1) @ v


@program(Q, K, K, MASK, (B, S), kinds="fffbb")
def two_masks(q, k, v, mask, padding):
    scores = (q @ k.mT).masked_fill(mask, -1e9)
    return scores.masked_fill(padding[:, None, None], -1e9).softmax(-1) @ v


# ── biases


@program(Q, K, K, (H, L, S))
def relative_bias(q, k, v, bias):
    """T5: no scale, a bias for each head."""
    return (q @ k.mT + bias.unsqueeze(0)).softmax(-1) @ v


@program(Q, K, K, (H, L, S), MASK, kinds="ffffm")
def bias_and_mask(q, k, v, bias, mask):
    scores = q @ k.mT
    scores += bias[None] + mask
    return F.softmax(scores.float(), dim=-1).type_as(scores) @ v


@program()
def bias_beyond_a_class_token(q, k, v):
    """As MViT adds relative positions: not to the scores of the first query and key."""
    bias = torch.sin(q[:, :, 1:]) @ k[:, :, 1:].cos().mT
    scores = q @ k.mT * D**-0.5
    scores[:, :, 1:, 1:] += bias
    return scores.softmax(-1) @ v


@program()
def bias_of_keys_beyond_two(q, k, v):
    scores = q @ k.mT
    scores[..., 2:] += k[:, :, 2:].sum(-1).unsqueeze(-2)
    return (scores * D**-0.5).softmax(-1) @ v


@program(Q, K, K, (H, L, S), MASK, kinds="ffffm")
def bias_then_mask(q, k, v, bias, mask):
    return (q @ k.mT * 0.5 + bias + mask).softmax(-1) @ v


@program(Q, K, K, (H,))
def slopes(q, k, v, slope):
    """ALiBi."""
    distance = (torch.arange(S)[None, :] - torch.arange(L)[:, None]).abs()
    return (q @ k.mT / 2 - slope[:, None, None] * distance).softmax(-1) @ v


@program((8, H, 4, D), (8, H, 4, D), (8, H, 4, D), (4, 4, 4))
def shifted_windows(q, k, v, mask):
    """Swin: windows folded into the batch, and a mask for each of the four windows of an image."""
    scores = q @ k.mT
    scores = scores.view(2, 4, H, 4, 4) + mask.unsqueeze(1).unsqueeze(0)
    return scores.view(-1, H, 4, 4).softmax(-1) @ v


@program((B, 6, D), (B, 6, D), (B, 6, D), (B, 2, 3, 2), (B, 2, 3, 3))
def decomposed_bias(q, k, v, rows, columns):
    """SAM: a bias along rows and one along columns of an image of 2 by 3."""
    scores = (q * 0.5) @ k.transpose(-2, -1)
    scores = scores.view(B, 2, 3, 2, 3) + rows[:, :, :, :, None] + columns[:, :, :, None, :]
    return scores.view(B, 6, 6).softmax(-1) @ v


@program(Q, K, K, (H, 1, 1))
def temperature(q, k, v, scale):
    """Swin v2: cosine similarity, with a learned temperature for each head."""
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return (scores * scale.exp()).softmax(-1) @ v


@program(Q, K, K)
def soft_cap(q, k, v):
    """Gemma 2."""
    scores = q @ k.mT * 0.5
    scores = torch.tanh(scores / 30.0) * 30.0
    return scores.softmax(-1) @ v


@program(Q, (B, H, S, D), K, (L, S, D))
def relative_keys(q, k, v, distance):
    """BERT with relative positions: a second product is added."""
    scores = q @ k.mT + torch.einsum("bhld,lrd->bhlr", q, distance)
    return (scores / 2).softmax(-1) @ v


@program(Q, K, K, MASK, kinds="fffm")
def neox(q, k, v, mask):
    q, k = q.view(B * H, L, D), k.view(B * H, S, D)
    scores = torch.zeros(B * H, L, S, dtype=q.dtype)
    scores = torch.baddbmm(scores, q, k.transpose(1, 2), beta=1.0, alpha=0.5).view(B, H, L, S)
    return F.softmax(scores + mask, -1).to(v.dtype) @ v


@program(Q, K, K, (B, H, L, S))
def bias_written_over_the_scores(q, k, v, bias):
    """MViT v2."""
    scores = (q * 0.5) @ k.transpose(-2, -1)
    scores[:, :, 0:, 0:] = scores[:, :, 0:, 0:] + bias
    return scores.softmax(dim=-1) @ v


# ── softmaxes


@program()
def softmax_in_single_precision(q, k, v):
    return F.softmax(q @ k.mT, dim=-1, dtype=torch.float32).to(q.dtype) @ v


@program()
def scores_in_single_precision(q, k, v):
    return torch.softmax((q @ k.mT).float(), -1).type_as(v) @ v


@program()
def exponentials(q, k, v):
    e = torch.exp(q @ k.mT)
    return (e / e.sum(-1, keepdim=True)) @ v


@program()
def exponentials_of_differences(q, k, v):
    scores = q @ k.mT * 0.5
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(dim=-1, keepdim=True) @ v


@program()
def exponentials_of_detached_maximum(q, k, v):
    scores = q @ k.mT
    e = (scores - scores.max(dim=-1, keepdim=True)[0].detach()).exp()
    return (e / e.sum(-1).unsqueeze(-1)) @ v


@program()
def normalised_afterwards(q, k, v):
    e = torch.exp(q @ k.mT)
    return (e @ v) / e.sum(-1, keepdim=True)


@program()
def stabilised_softmax(q, k, v):
    scores = q @ k.mT
    return (scores - scores.amax(-1, keepdim=True)).softmax(-1) @ v


@program()
def exp_of_log_softmax(q, k, v):
    return F.log_softmax(q @ k.mT, -1).exp() @ v


@program(Q, K, K, MASK, kinds="fffb")
def safe_softmax(q, k, v, mask):
    """Queries without keys give zero."""
    return (q @ k.mT).masked_fill(mask, -math.inf).softmax(-1).nan_to_num() @ v


@program(Q, K, K, MASK, kinds="fffb")
def masked_twice(q, k, v, mask):
    weights = (q @ k.mT).masked_fill(mask, -1e9).softmax(-1)
    return weights.masked_fill(mask, 0.0) @ v


@program()
def dropout_not_in_training(q, k, v):
    return F.dropout((q @ k.mT).softmax(-1), 0.1, training=False) @ v


@program()
def weights_returned(q, k, v):
    weights = (q @ k.mT * 0.5).softmax(-1)
    return weights @ v, weights


@program((B, L, H * D), (B, S, H * D), (B, S, H * D))
def mean_of_weights_returned(q, k, v):
    q, k, v = (t.view(B, -1, H, D).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2), weights.mean(1)


# ── sinks


@program(Q, K, K, (H,))
def sink(q, k, v, sinks):
    """GPT-OSS: a learned score for each head, whose weight goes to no value."""
    scores = q @ k.mT * 0.5
    joined = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[-2], -1)], dim=-1)
    joined = joined - joined.max(dim=-1, keepdim=True).values
    weights = F.softmax(joined, dim=-1, dtype=joined.dtype)[..., :-1]
    return F.dropout(weights, 0.1, training=False).to(v.dtype) @ v


@program(Q, K, K, (H, 1, 1), MASK, kinds="ffffm")
def sink_in_front(q, k, v, sinks, mask):
    scores = q @ k.mT + mask.clamp_min(-9.0)
    weights = torch.cat([sinks.expand(B, H, L, 1), scores], -1).softmax(-1)[:, :, :, 1:]
    return weights @ v, weights


@program(Q, K, K, (B, H, L, 1), MASK, kinds="ffffb")
def sink_of_each_query(q, k, v, sinks, mask):
    """A query that may attend to nothing attends to the sink alone."""
    scores = (q @ k.mT).masked_fill(mask, -math.inf)
    return F.softmax(torch.cat((scores, sinks), 3).float(), -1).type_as(q).narrow(-1, 0, k.shape[2]) @ v


@program(Q, K, K, (H,), MASK, kinds="ffffm")
def sink_that_scales_the_result(q, k, v, sinks, mask):
    """Granite: the share of the weights that the sink leaves."""
    scores = q @ k.mT * 0.5 + mask.clamp_min(-9.0)
    share = (torch.logsumexp(scores, dim=-1) - sinks.view(1, -1, 1)).sigmoid()
    return (scores.softmax(-1) @ v) * share.unsqueeze(-1).to(v.dtype)


# ── sums over heads


@program(Q, K, K, (H, H), (H,), (H, H), (H,))
def talking_heads(q, k, v, before, one, after, other):
    """CaiT."""
    scores = F.linear((q * 0.5 @ k.mT).permute(0, 2, 3, 1), before, one).permute(0, 3, 1, 2)
    weights = F.linear(scores.softmax(dim=-1).permute(0, 2, 3, 1), after, other).permute(0, 3, 1, 2)
    return weights @ v


@program(Q, K, (B, 2, S, D), (6, H, 1, 1), (6,), (2, 6, 1, 1))
def heads_mixed_by_convolutions(q, k, v, before, bias, after):
    """EfficientFormer v2; more heads in the softmax than of queries or values."""
    return F.conv2d(F.conv2d(q @ k.mT, before, bias).softmax(-1), after) @ v


@program(Q, K, (B, 6, S, D), (H, 6), MASK, kinds="ffffm")
def heads_mixed_by_einsum(q, k, v, before, mask):
    weights = (torch.einsum("bhij,hg->bgij", q @ k.mT, before) * 0.5 + mask).softmax(-1)
    return torch.einsum("bgij,bgjd->bgid", weights, v), weights


@program(Q, K, (B, 6, S, D), (H, 6))
def weights_mixed_and_returned(q, k, v, after):
    weights = torch.einsum("bhij,hg->bgij", (q @ k.mT).softmax(-1), after)
    return weights @ v, weights


# ── what attends to what


@program((B, D, 3, 4), (1, D, 1, 1), (1,))
def global_context(x, weight, bias):
    """GCNet: a convolution gives the scores."""
    weights = F.conv2d(x, weight, bias).reshape(B, 1, 12).softmax(-1).unsqueeze(3)
    return (x.reshape(B, D, 12).unsqueeze(1) @ weights).view(B, D, 1, 1)


@program((1, 3, D), (B, S, D), (B, S, D))
def learned_queries(q, k, v):
    return (q.expand(B, -1, -1) @ k.mT).softmax(-1) @ v


@program((B, S, D), (D,))
def pooling_by_a_vector(x, query):
    weights = torch.softmax(x @ query, -1)
    return (weights.unsqueeze(-1) * x).sum(1)


@program((B, S, D), (1, D), (1,))
def pooling_by_a_linear_layer(x, weight, bias):
    scores = F.linear(x, weight, bias)
    return torch.bmm(scores.softmax(1).transpose(1, 2), x).squeeze(1)


@program((B, 6, H, D), (B, 6, H, D), (B, 6, H, D))
def chunks(q, k, v):
    """Each chunk of three attends to itself."""
    q, k, v = (t.view(B, 2, 3, H, D).permute(0, 1, 3, 2, 4) for t in (q, k, v))
    return ((q @ k.mT / 2).softmax(-1) @ v).permute(0, 1, 3, 2, 4).reshape(B, 6, H * D)


@program((B, 4, 6, D), (B, 4, 6, D), (B, 4, 6, D))
def windows_of_an_image(q, k, v):
    def windows(x):
        return x.view(B, 2, 2, 3, 2, D).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, D)

    y = (windows(q) @ windows(k).mT).softmax(-1) @ windows(v)
    return y.view(B, 2, 3, 2, 2, D).permute(0, 1, 3, 2, 4, 5).reshape(B, 4, 6, D)


@program((B, 4, 6, D), (B, 4, 6, D), (B, 4, 6, D), count=1)
def along_rows(q, k, v):
    return torch.einsum("brij,brjd->brid", torch.einsum("brid,brjd->brij", q, k).softmax(-1), v)


@program((B, 4, 6, D), (B, 4, 6, D), (B, 4, 6, D))
def along_columns(q, k, v):
    return torch.einsum("bcij,bjcd->bicd", torch.einsum("bicd,bjcd->bcij", q, k).softmax(-1), v)


@program((B, H, D, L), (B, H, D, L), (B, H, D, L))
def between_channels(q, k, v):
    """XCiT: channels attend to channels."""
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1) @ v


@program((B, L, D), (B, L, 3, D), (B, L, 3, D))
def keys_of_each_query(q, k, v):
    """Neighbourhoods: every query has three keys of its own."""
    weights = torch.einsum("bld,blkd->blk", q, k).softmax(-1)
    return torch.einsum("blk,blkd->bld", weights, v)


# ── scores that are made in another way, where the axis is proven to hold positions


@program((B, D, 3, L), (1 + 2 * D, D, 1, 1))
def one_score_for_each_position(x, weight):
    """MobileViT v2: the scores are one channel of a projection, the values are others."""
    scores, k, v = F.conv2d(x, weight).split([1, D, D], 1)
    context = (k * F.softmax(scores, dim=-1)).sum(dim=-1, keepdim=True)
    return F.relu(v) * context.expand_as(v)


@program((B, D, L), (3 * D, D, 1), (D,))
def one_score_for_each_state(x, weight, bias):
    """EfficientViM: states gather positions, each by scores and factors of its own."""
    b, c, step = F.conv1d(x, weight).chunk(3, 1)
    weights = (step + bias.view(1, -1, 1)).softmax(-1)
    return (x @ (weights * b).transpose(-2, -1)) @ c


@program((B, 3 * S, D), (D,), (D, D), (D, D), (3, D))
def channels_that_choose_positions(x, norm, scores, values, bias):
    """DeepSeek V4: every channel of every window weighs the positions in it."""
    x = F.layer_norm(x, (D,), norm)
    gates = F.linear(x, scores).view(B, -1, 3, D) + bias
    return (F.linear(x, values).view(B, -1, 3, D) * gates.softmax(2, dtype=torch.float32).to(x.dtype)).sum(2)


@program((B, L, D), (B, S, D), (B, L), (B, S), (D,), kinds="ffbbf", count=2)
def both_ways(image, text, hidden, unread, norm):
    """Grounding DINO: clamped scores of one product, normalised over either side."""
    image, text = (F.layer_norm(x, (D,), norm) for x in (image, text))
    scores = torch.bmm(image, text.transpose(1, 2))
    scores = torch.clamp(scores - scores.max(), min=-50000, max=50000)
    across = scores.transpose(1, 2)
    across = torch.clamp(across - torch.max(across, dim=-1, keepdim=True)[0], min=-50000, max=50000)
    across.masked_fill_(hidden[:, None], -math.inf)
    across = across.softmax(dim=-1)
    scores.masked_fill_(unread[:, None], -math.inf)
    return torch.bmm(scores.softmax(dim=-1), text), torch.bmm(across, image)


# ── weights that are normalised again


@program(Q, K, K, (1, L, S, 3), (H, 3), (H,))
def gated_positions(q, k, v, places, projection, gate):
    """ConViT: a convex sum of two softmaxes, one of positions alone."""
    content = (q @ k.transpose(-2, -1) * 0.5).softmax(dim=-1)
    place = F.linear(places, projection).permute(0, 3, 1, 2).softmax(dim=-1)
    gate = torch.sigmoid(gate.view(1, -1, 1, 1))
    weights = (1.0 - gate) * content + gate * place
    weights /= weights.sum(dim=-1).unsqueeze(-1)
    return weights @ v


@program(Q, K, K, MASK, kinds="fffb")
def masked_and_normalised_again(q, k, v, mask):
    weights = (q @ k.mT).softmax(-1) * ~mask
    return weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v


@program((B, 6, D), (B, 2, 3, D), (B, 2, 3, D), (B, 1, 2, 3))
def normalised_again_over_two_axes(q, k, v, factor):
    weights = torch.einsum("bqd,bhwd->bqhw", q, k).flatten(2).softmax(-1).view(B, -1, *k.shape[1:3]) * factor.abs()
    return torch.einsum("bqhw,bhwd->bqd", weights / weights.sum((2, 3), keepdim=True), v)
