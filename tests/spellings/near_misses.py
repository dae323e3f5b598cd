"""Programs that look like attention and are not, or not the one they seem: what matters is that no output changes.

Sizes coincide on purpose: as many heads as queries, keys and channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .attention import Program

__all__ = ["PROGRAMS"]

N = 4
T = (N, N, N, N)  # samples, heads, positions and channels
PROGRAMS: dict[str, Program] = {}


def program(*shapes: tuple[int, ...], kinds: str = "", count: int = -1) -> Callable[[Callable[..., Any]], Any]:
    """Register a function; ``count`` nodes are expected, −1: whatever is right."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        given = shapes or (T, T, T)
        PROGRAMS[name] = Program(name, function, given, tuple(kinds or "f" * len(given)), count)
        return function

    return register


@program(count=0)
def softmax_over_queries(q, k, v):
    return (q @ k.mT).softmax(-2) @ v


@program(count=0)
def softmax_over_heads(q, k, v):
    return (q @ k.mT).softmax(1) @ v


@program(count=0)
def softmax_over_samples(q, k, v):
    return (q @ k.mT).softmax(0) @ v


@program()
def keys_not_transposed(q, k, v):
    return (q @ k).softmax(-1) @ v


@program()
def keys_transposed_otherwise(q, k, v):
    return (q @ k.permute(0, 3, 2, 1)).softmax(-1) @ v


@program()
def heads_and_positions_exchanged(q, k, v):
    return (q @ k.permute(0, 2, 3, 1)).softmax(-1) @ v


@program()
def batch_and_heads_exchanged(q, k, v):
    return (q @ k.permute(1, 0, 3, 2)).softmax(-1) @ v


@program()
def values_swapped(q, k, v):
    return (q @ k.mT).softmax(-1) @ v.mT


@program()
def values_of_other_heads(q, k, v):
    return (q @ k.mT).softmax(-1) @ v.transpose(0, 1)


@program()
def weights_transposed(q, k, v):
    return (q @ k.mT).softmax(-1).mT @ v


@program()
def weights_of_other_heads(q, k, v):
    return (q @ k.mT).softmax(-1).transpose(0, 1) @ v


@program(count=0)
def sigmoid_attention(q, k, v):
    return torch.sigmoid(q @ k.mT / 2) @ v


@program(count=0)
def relu_attention(q, k, v):
    return F.relu(q @ k.mT) @ v / N


@program(count=0)
def squared_softmax(q, k, v):
    return (q @ k.mT).softmax(-1).square() @ v


@program(T, T, T, (N, N, N, 1), kinds="ffff")
def temperature_of_each_query(q, k, v, t):
    return (q @ k.mT / t).softmax(-1) @ v


@program(T, T, T, (N, 1, 1, N), kinds="ffff")
def temperature_of_each_key(q, k, v, t):
    return (q @ k.mT * t).softmax(-1) @ v


@program(T, T, T, (N, N), kinds="fffb")
def mask_after_softmax(q, k, v, mask):
    return (q @ k.mT).softmax(-1).masked_fill(mask, 0.0) @ v


@program(T, T, T, (N, N), kinds="fffm")
def fully_masked_rows_infinite(q, k, v, mask):
    return (q @ k.mT + torch.full((N, N), -math.inf, dtype=q.dtype) + 0 * mask.nan_to_num()).softmax(-1) @ v


@program(T, T, T, (N, 1, 1, 1), kinds="fffb")
def whole_samples_masked_large(q, k, v, mask):
    return (q @ k.mT).masked_fill(mask, -1e9).softmax(-1) @ v


@program(T, T, T, (N, 1, 1, 1), kinds="fffb")
def whole_samples_masked_infinite(q, k, v, mask):
    return (q @ k.mT).masked_fill(mask, -math.inf).softmax(-1) @ v


@program(T, T, T, (N, 1, 1, 1), kinds="fffb")
def whole_samples_masked_then_biased(q, k, v, mask):
    return ((q @ k.mT).masked_fill(mask, -1e9) + k.mean(-1)[:, :, None, :] * 1e9).softmax(-1) @ v


@program(T, T, T, (N, N), kinds="fffb")
def mask_that_hardly_masks(q, k, v, mask):
    return (q @ k.mT).masked_fill(mask, -2.0).softmax(-1) @ v


@program(T, T, T, (N, N), kinds="fffb")
def mask_inverted_twice(q, k, v, mask):
    return (q @ k.mT).masked_fill(~mask, -math.inf).masked_fill(mask, 0.0).softmax(-1) @ v


@program((N, N, 3, N), (N, N, 5, N), (N, N, 5, N))
def causal_with_more_keys(q, k, v):
    """Aligned at the last position, not at the first."""
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2)
    return (q @ k.mT).masked_fill(~mask, -math.inf).softmax(-1) @ v


@program((N, N, 5, N), (N, N, 3, N), (N, N, 3, N))
def causal_with_more_queries(q, k, v):
    mask = torch.ones(5, 3, dtype=torch.bool).tril()
    return (q @ k.mT).masked_fill(~mask, -math.inf).softmax(-1) @ v


@program()
def anticausal(q, k, v):
    mask = torch.ones(N, N, dtype=torch.bool).triu()
    return (q @ k.mT).masked_fill(~mask, -math.inf).softmax(-1) @ v


@program()
def causal_transposed(q, k, v):
    mask = torch.ones(N, N, dtype=torch.bool).tril().mT
    return (q @ k.mT).masked_fill(mask, -math.inf).softmax(-1) @ v


@program()
def weights_used_twice(q, k, v):
    weights = (q @ k.mT).softmax(-1)
    return weights @ v + weights.mT @ q


@program()
def weights_used_before_dropout(q, k, v):
    weights = (q @ k.mT).softmax(-1)
    return F.dropout(weights, 0.5) @ v * 0 + weights @ v


@program(count=1)
def scores_used_elsewhere(q, k, v):
    scores = q @ k.mT
    return scores.softmax(-1) @ v, scores


@program(count=0)
def scores_written_afterwards(q, k, v):
    scores = q @ k.mT
    weights = scores.softmax(-1)
    scores.mul_(2)
    return weights @ v + scores


@program(count=0)
def normalised_over_another_axis(q, k, v):
    e = (q @ k.mT).exp()
    return (e / e.sum(-2, keepdim=True)) @ v


@program(count=0)
def normalised_without_keepdim(q, k, v):
    """The sum over keys is broadcast along them, not along queries."""
    e = (q @ k.mT).exp()
    return (e / e.sum(-1)) @ v


@program(count=0)
def sum_with_an_epsilon(q, k, v):
    e = (q @ k.mT).exp()
    return (e / (e.sum(-1, keepdim=True) + 0.1)) @ v


@program(count=0)
def softmax_plus_one(q, k, v):
    e = (q @ k.mT).exp()
    return (e @ v) / (1 + e.sum(-1, keepdim=True))


@program(count=1)
def maximum_of_another_axis(q, k, v):
    scores = q @ k.mT
    return (scores - scores.amax(-2, keepdim=True)).softmax(-1) @ v


@program()
def shifted_by_another_row(q, k, v):
    scores = q @ k.mT
    return (scores - v.mean(-1, keepdim=True)).softmax(-1) @ v


@program(count=0)
def diagonal_of_values(q, k, v):
    return torch.einsum("bhij,bhjj->bhij", (q @ k.mT).softmax(-1), v)


@program(count=0)
def hadamard_instead_of_product(q, k, v):
    return (q @ k.mT).softmax(-1) * v


@program(count=0)
def scores_of_sums(q, k, v):
    """Additive attention: no product of queries and keys."""
    scores = torch.tanh(q.unsqueeze(3) + k.unsqueeze(2)).sum(-1)
    return scores.softmax(-1) @ v


@program(count=0)
def view_across_axes(q, k, v):
    """A view of the scores that is no transposition, though the sizes fit."""
    return (q @ k.mT).softmax(-1).view(N, N, N * N).view(N * N, N, N).transpose(0, 1).reshape(T) @ v


@program()
def heads_split_the_other_way(q, k, v):
    q, k, v = (t.reshape(N, N, N * N).view(N, N, N, N).transpose(1, 2) for t in (q, k, v))
    return (q @ k.mT).softmax(-1) @ v


@program()
def keys_as_values_transposed(q, k, v):
    return (q @ k.mT).softmax(-1) @ k.transpose(1, 2)


@program(count=0)
def rolled_weights(q, k, v):
    return (q @ k.mT).softmax(-1).roll(1, -1) @ v


@program()
def topped_up_weights(q, k, v):
    return ((q @ k.mT).softmax(-1) + 0.1) @ v


@program()
def dropout_of_scores(q, k, v):
    return F.dropout(q @ k.mT, 0.5).softmax(-1) @ v


@program()
def queries_as_keys_as_values(q, k, v):
    return (q @ q.mT).softmax(-1) @ q


@program(T, T, T, (N,), kinds="ffff", count=0)
def first_position_dropped(q, k, v, sinks):
    """The sink comes last, but the weight of the first position is dropped."""
    joined = torch.cat([q @ k.mT, sinks.reshape(1, -1, 1, 1).expand(N, -1, N, -1)], -1)
    return joined.softmax(-1)[..., 1:] @ v


@program(T, T, T, (N,), kinds="ffff", count=0)
def sink_as_another_query(q, k, v, sinks):
    joined = torch.cat([q @ k.mT, sinks.reshape(1, -1, 1, 1).expand(N, -1, -1, N)], -2)
    return joined.softmax(-2)[..., :-1, :] @ v


@program(T, T, T, (N, 1, 1), kinds="ffff", count=0)
def sink_scaled_with_the_scores(q, k, v, sinks):
    joined = torch.cat([q @ k.mT, sinks.expand(N, N, N, 1)], -1) * 0.5
    return joined.softmax(-1)[..., :-1] @ v


@program(T, T, T, (N, 1, 1), kinds="ffff", count=0)
def dropout_with_the_sink(q, k, v, sinks):
    joined = torch.cat([q @ k.mT, sinks.expand(N, N, N, 1)], -1)
    return F.dropout(joined.softmax(-1), 0.5)[..., :-1] @ v


@program(T, T, T, (N, 1, 1), kinds="ffff", count=0)
def weight_of_the_sink_returned(q, k, v, sinks):
    weights = torch.cat([q @ k.mT, sinks.expand(N, N, N, 1)], -1).softmax(-1)
    return weights[..., :-1] @ v, weights


@program(T, T, T, (N,), (N, N), kinds="ffffm")
def scaled_by_the_sum_of_scores_without_a_mask(q, k, v, sinks, mask):
    scores = q @ k.mT
    share = (torch.logsumexp(scores, dim=-1) - sinks.view(1, -1, 1)).sigmoid()
    return ((scores + mask.clamp_min(-9.0)).softmax(-1) @ v) * share.unsqueeze(-1)


@program(T, T, T, (N,), kinds="ffff")
def scaled_by_the_sum_over_queries(q, k, v, sinks):
    scores = q @ k.mT
    share = (torch.logsumexp(scores, dim=-2) - sinks.view(1, -1, 1)).sigmoid()
    return (scores.softmax(-1) @ v) * share.unsqueeze(-1)


@program(T, T, T, (N,), kinds="ffff")
def scaled_by_the_share_of_the_sink(q, k, v, sinks):
    scores = q @ k.mT
    share = (sinks.view(1, -1, 1) - torch.logsumexp(scores, dim=-1)).sigmoid()
    return (scores.softmax(-1) @ v) * share.unsqueeze(-1)


@program(T, T, T, (N,), kinds="ffff")
def features_scaled_by_a_sink(q, k, v, sinks):
    """The shares of queries meet features: their axes have one extent."""
    scores = q @ k.mT
    share = (torch.logsumexp(scores, dim=-1) - sinks.view(1, -1, 1)).sigmoid()
    return (scores.softmax(-1) @ v) * share.unsqueeze(-2)


@program(T, T, T, (N,), kinds="ffff")
def weights_returned_without_the_sink(q, k, v, sinks):
    scores = q @ k.mT
    share = (torch.logsumexp(scores, dim=-1) - sinks.view(1, -1, 1)).sigmoid()
    weights = scores.softmax(-1)
    return (weights @ v) * share.unsqueeze(-1), weights


@program(T, T, T, (N, N), kinds="ffff", count=0)
def positions_mixed_after_the_softmax(q, k, v, matrix):
    return F.linear((q @ k.mT).softmax(-1), matrix) @ v


@program(T, T, T, (N, N), kinds="ffff")
def queries_mixed_after_the_softmax(q, k, v, matrix):
    return F.linear((q @ k.mT).softmax(-1).mT, matrix).mT @ v


@program(T, T, T, (N, N), kinds="ffff")
def samples_mixed(q, k, v, matrix):
    return torch.einsum("bhij,ba->ahij", (q @ k.mT).softmax(-1), matrix) @ v


@program(T, T, T, (N, N, N), kinds="ffff")
def heads_mixed_for_each_sample(q, k, v, matrix):
    return torch.einsum("bhij,bhg->bgij", (q @ k.mT).softmax(-1), matrix) @ v


@program(T, T, T, (N, N), kinds="ffff")
def heads_mixed_and_transposed(q, k, v, matrix):
    return F.linear((q @ k.mT).permute(0, 3, 2, 1), matrix).softmax(-1) @ v


@program((N, N, N), (N, N), (N, N), (N, N), kinds="ffff")
def additive_attention(x, queries, keys, heads):
    """The scores are a sum over channels of tanh(q + k), which is no product of q and k."""
    features = torch.tanh((x @ queries)[:, :, None] + (x @ keys)[:, None])
    return F.linear(features, heads).permute(0, 3, 1, 2).softmax(-1) @ x[:, None]


@program((N, N, N, N), (N, N, 1, 2), kinds="ff")
def convolution_over_neighbours(x, weight):
    """Its windows hold two positions."""
    scores = F.conv2d(F.pad(x, (0, 1)), weight).reshape(N, N, N * N)
    return scores.softmax(-1) @ x.reshape(N, N, N * N).mT


@program(T, T, T, (N, N, N, N - 1), kinds="ffff", count=1)
def bias_written_over_a_part(q, k, v, bias):
    scores = q @ k.mT
    scores[..., 1:] = scores[..., 1:] + bias
    return scores.softmax(-1) @ v


@program(T, T, T, T, kinds="ffff")
def written_over_after_it_was_read(q, k, v, bias):
    scores = q @ k.mT
    weights = scores.softmax(-1)
    scores[:, :, 0:] = bias
    return weights @ v + scores


@program(T, T, T, T, kinds="ffff")
def written_over_twice(q, k, v, bias):
    scores = q @ k.mT
    scores[:, :, 0:] = bias
    scores[:, :, :, 0:] = q @ k.mT * 2
    return scores.softmax(-1) @ v


@program(T, T, T, T, kinds="ffff", count=0)
def written_over_with_something_else(q, k, v, bias):
    scores = q @ k.mT
    scores[:, :, 0:] = bias
    return scores.softmax(-1) @ v


@program(T, T, T, (N, N), kinds="ffff", count=0)
def written_over_by_a_row(q, k, v, row):
    """Every row of the scores becomes the same."""
    scores = q @ k.mT
    scores[:, :, 0:] = scores[:, :, :1] + row
    return scores.softmax(-1) @ v


@program()
def added_to_a_part_after_it_was_read(q, k, v):
    scores = q @ k.mT
    weights = scores.softmax(-1)
    scores[:, :, 1:, 1:] += 1.0 + q[:, :, 1:] @ k[:, :, 1:].mT
    return weights @ v + scores


@program()
def added_to_a_part_after_a_view(q, k, v):
    scores = q @ k.mT
    rows = scores.flatten(0, 1)
    scores[:, :, 1:, 1:] += q[:, :, 1:] @ k[:, :, 1:].mT
    return rows.softmax(-1).view(N, N, N, N) @ v


@program()
def added_to_two_parts(q, k, v):
    scores = q @ k.mT
    scores[:, :, 1:] += q[:, :, 1:] @ k.mT
    scores[:, :, :, 2:] += q @ k[:, :, 2:].mT
    return scores.softmax(-1) @ v


@program()
def a_row_added_to_a_part(q, k, v):
    scores = q @ k.mT
    scores[:, :, 1:, 1:] += k[:, :, :1, 1:]
    return scores.softmax(-1) @ v


@program()
def added_to_the_first_part(q, k, v):
    scores = q @ k.mT
    scores[:, :, :-1, :-1] += q[:, :, 1:] @ k[:, :, 1:].mT
    return scores.softmax(-1) @ v


@program()
def added_to_a_part_and_sent_elsewhere(q, k, v):
    scores = q @ k.mT
    part = scores[:, :, 1:, 1:]
    part += q[:, :, 1:] @ k[:, :, 1:].mT
    scores[:, :, :-1, :-1] = part
    return scores.softmax(-1) @ v


# ── scores that are no products, over axes that count no positions


@program((N, N, N, N), (N, N, 1, 1), (N, N, 1, 1), (N * 2, N, 1, 1), count=0)
def softmax_over_branches(x, first, second, choice):
    """Selective kernels: which of two branches, for each channel."""
    branches = torch.stack([F.conv2d(x, first), F.conv2d(x, second)], 1)
    weights = F.conv2d(branches.sum(1).mean((2, 3), keepdim=True), choice).view(N, 2, N, 1, 1).softmax(1)
    return (branches * weights).sum(1)


@program((N, N, N), (N,), (N,), (N, N, N), count=0)
def softmax_over_experts(x, norm, gate, experts):
    x = F.layer_norm(x, (N,), norm)
    weights = torch.sin(x * gate).softmax(-1)
    return (weights.unsqueeze(-1) * torch.einsum("bld,edf->blef", x, experts)).sum(2)


@program((N, N, N, N), (N * N, N, 1, 1), count=0)
def softmax_over_bins(x, weight):
    """Distances as the mean of a distribution over bins."""
    bins = F.relu(F.conv2d(x, weight)).view(N, N, N, N, N).softmax(2)
    return (bins * torch.arange(N, dtype=x.dtype).view(1, 1, N, 1, 1)).sum(2)


@program((N, N, N), (2 * N, N, 1), count=0)
def summed_over_another_axis_than_that_of_the_softmax(x, weight):
    scores, v = F.conv1d(x, weight).chunk(2, 1)
    return (scores.clamp(min=-1.0).softmax(-1) * v).sum(1)


@program(T, T, T)
def shifted_within_a_soft_cap(q, k, v):
    """What is subtracted from a whole row matters in front of a function that is not linear."""
    scores = q @ k.mT
    return torch.tanh(scores - scores.amax(-1, keepdim=True)).softmax(-1) @ v


@program((N, N, N), (N,), (N, N, N), kinds="fff")
def scores_written_between_softmax_and_sum(x, norm, bias):
    x = F.layer_norm(x, (N,), norm)
    scores = (x @ x.mT).clamp(max=1.0)
    weights = scores.softmax(-1)
    x = x * 1.0
    x.add_(bias)
    return weights @ x, scores


# ── weights that are normalised again, otherwise than it seems


@program(count=0)
def normalised_again_over_queries(q, k, v):
    weights = (q @ k.mT).softmax(-1)
    return (weights / weights.sum(-2, keepdim=True)) @ v


@program(count=0)
def normalised_again_without_keepdim(q, k, v):
    weights = (q @ k.mT).softmax(-1) * 0.3
    return (weights / weights.sum(-1)) @ v


@program()
def divided_by_the_sum_of_other_weights(q, k, v):
    weights = (q @ k.mT).softmax(-1)
    return (weights.masked_fill(weights < 0.1, 0.0) / weights.square().sum(-1, keepdim=True)) @ v


@program(T, T, T, (N, 1), kinds="ffff")
def normalised_again_with_an_epsilon_of_each_query(q, k, v, eps):
    weights = (q @ k.mT).softmax(-1)
    return (weights / (weights.sum(-1, keepdim=True) + eps.abs())) @ v


@program(count=0)
def written_over_between_sum_and_division(q, k, v):
    weights = (q @ k.mT).softmax(-1)
    total = weights.sum(-1, keepdim=True)
    weights.square_()
    return (weights / total) @ v
