"""Pair functions in many spellings: name → (function, params)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(1)
FIRST, SECOND = nn.Linear(15, 7).double(), nn.Linear(7, 3).double()
NORM = nn.LayerNorm(7).double()
OMEGA = nn.Parameter(torch.randn(4, 2, dtype=torch.float64))
MATRIX = torch.randn(3, 6, dtype=torch.float64)
SCALES = torch.rand(3, dtype=torch.float64) + 0.5


def concatenation(pos_q, pos_k, feat_q, feat_k):
    return SECOND(F.gelu(FIRST(torch.cat([pos_q - pos_k, pos_q, feat_q, feat_k]))))


def fourier(pos_q, pos_k, feat_q, feat_k, *, params):
    phase = OMEGA @ (pos_q - pos_k)
    hidden = F.silu(params["wave"] @ torch.cat([torch.sin(phase), torch.cos(phase)]) + params["own"] @ feat_q)
    return params["out"] @ hidden


def products(pos_q, pos_k, feat_q, feat_k):
    heads = feat_q.view(3, 2), (MATRIX @ feat_q).unsqueeze(-1)
    return torch.einsum("hd,hd->h", heads[0], heads[0] * 2) + (heads[0] * heads[1]).sum(-1) + feat_k[:3].dot(feat_q[3:])


def distances(pos_q, pos_k, feat_q, feat_k):
    distance = torch.linalg.vector_norm(pos_q - pos_k)
    return torch.exp(-distance / SCALES) - 0.5 * distance**2 + distance.clamp(max=1.0).sqrt()


def decisions(pos_q, pos_k, feat_q, feat_k):
    ahead = pos_q[0] > pos_k[0]
    bent = torch.where(ahead & (feat_q[:3] < feat_k[:3]), torch.tanh(feat_q[:3]), F.relu(feat_k[:3]))
    return bent + torch.maximum(feat_q[1:4], feat_k[2:5]) * (~ahead).float() + (pos_q >= pos_k).to(feat_q.dtype).sum()


def layers(pos_q, pos_k, feat_q, feat_k):
    hidden = NORM(FIRST(torch.cat((pos_q, feat_k, pos_k, feat_q))))
    return SECOND(F.softplus(hidden) + F.elu(hidden) * F.leaky_relu(hidden)).softmax(-1)


def pieces(pos_q, pos_k, feat_q, feat_k):
    one, other = feat_q.chunk(2)
    stacked = torch.stack([one, other], 1) @ torch.stack([feat_k[:3], feat_k[2:]])
    return stacked[:, ::2].mean(1) + stacked.t()[0] + torch.arange(3) + feat_k[1::2].sum()


def one_number(pos_q, pos_k, feat_q, feat_k):
    return 1 / (1 + ((pos_q - pos_k) ** 2).sum()) + torch.rsqrt(1 + feat_q[0] ** 2) * feat_k.amax()


def of_the_query_alone(pos_q, pos_k, feat_q, feat_k):
    return feat_q[:3].abs().log1p()


def of_nothing(pos_q, pos_k, feat_q, feat_k):
    return SCALES * 2


def shifted_norm(pos_q, pos_k, feat_q, feat_k):
    """A normalisation over features that come from both sides."""
    hidden = feat_q[:5] - 2 * feat_k
    return ((hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt())[:3]


_PARAMS = {
    "wave": torch.randn(5, 8, dtype=torch.float64),
    "own": torch.randn(5, 6, dtype=torch.float64),
    "out": torch.randn(3, 5, dtype=torch.float64),
}

FUNCTIONS = {
    function.__name__: (function, params)
    for function, params in (
        (concatenation, None),
        (fourier, _PARAMS),
        (products, None),
        (distances, None),
        (decisions, None),
        (layers, None),
        (pieces, None),
        (one_number, None),
        (of_the_query_alone, None),
        (of_nothing, None),
        (shifted_norm, None),
    )
}
