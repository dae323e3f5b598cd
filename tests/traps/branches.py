"""Traps for control flow that depends on values: branches, loops, lengths, routing, post-processing."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .table import call, trap

G = torch.Generator().manual_seed(5)
X = torch.randn(4, 6, generator=G)
SIGNS = [call(X.abs()), call(-X.abs()), call(X.abs() * 2)]
SEQUENCE = torch.randn(3, 5, 6, generator=G)
LENGTHS = [call(SEQUENCE, torch.tensor(n)) for n in ([5, 3, 2], [4, 5, 1], [2, 2, 2])]


def mlp(width=6):
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = mlp(), mlp(), mlp()


@trap(SIGNS[0], then=SIGNS[1:], parts=["stem", "left"])
class Branch(Three):
    """Loses the branch not taken at the example."""

    def forward(self, x):
        positive = bool(x.sum() > 0)
        x = self.stem(x)
        return self.left(x) if positive else self.right(x)


@trap(SIGNS[0], then=SIGNS[1:], parts=["stem", "left"])
class BranchOnItem(Three):
    """Loses .item() used in arithmetic and in a branch."""

    def forward(self, x):
        level = x.mean().item()
        x = self.stem(x) * level
        return self.left(x) if level > 0 else self.right(x) + level


@trap(SIGNS[0], then=SIGNS[1:], expect="any")
class ItemAsNumber(Three):
    """Loses the value of float(x.mean()), which the graph would keep for ever."""

    def forward(self, x):
        return self.stem(x) * float(x.detach().mean())


@trap(X, then=[call(X), call(5 * X), call(0.1 * X)], parts=["step"])
class Converges(nn.Module):
    """Loses the number of steps until a loop converges."""

    def __init__(self):
        super().__init__()
        self.step = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x):
        z = torch.zeros_like(x)
        for _ in range(20):
            new = 0.5 * self.step(z) + 0.1 * x
            if (new - z).abs().max() < 1e-2:
                break
            z = new
        return z


@trap(X, then=[call(X), call(40 * X), call(0 * X)], parts=["layers.0"])
class EarlyExit(nn.Module):
    """Loses exits after fewer layers."""

    def __init__(self):
        super().__init__()
        self.layers, self.exits = nn.ModuleList(mlp() for _ in range(3)), nn.ModuleList(nn.Linear(6, 2) for _ in "abc")

    def forward(self, x):
        for layer, leave in zip(self.layers, self.exits, strict=True):
            x = layer(x)
            logits = leave(x)
            if logits.softmax(-1).amax() > 0.75:
                break
        return logits


@trap(X, then=SIGNS, expect="any", grad=False)
class Nonzero(nn.Module):
    """Loses sizes that depend on values."""

    def forward(self, x):
        return (x > 0.3).nonzero(), torch.where(x > 0), x[x > 0.1], torch.unique(x.round()), x.sum(1).argsort()


@trap(X, then=SIGNS, expect="any")
class MaskedMean(Three):
    """Loses boolean masks that select rows, which may be none."""

    def forward(self, x):
        x = self.stem(x)
        chosen = x[x[:, 0] > 0]
        return self.left(chosen), chosen.sum() / max(len(chosen), 1)


@trap(X, then=SIGNS, expect="any", writes=True)
class MaskedAssignment(Three):
    """Loses an assignment through a boolean mask, into the input and into a value."""

    def forward(self, x):
        x[x < -0.5] = 0
        x = self.stem(x)
        x[x > 0.2] *= 2
        return x


@trap(X, then=SIGNS, parts=["stem"])
class ToList(Three):
    """Loses values that went through Python lists."""

    def forward(self, x):
        order = sorted(range(len(x)), key=lambda row: x.tolist()[row][0])
        return self.stem(x)[order]


@trap(LENGTHS[0], then=LENGTHS[1:], parts=["stem"], expect="any")
class SplitByLengths(Three):
    """Loses lengths read from a tensor."""

    def forward(self, x, lengths):
        x = self.stem(x)
        rows = [row[:n] for row, n in zip(x, lengths.tolist(), strict=True)]
        joined = torch.cat(rows)
        return torch.stack([part.mean(0) for part in joined.split(lengths.tolist())])


@trap(X, then=SIGNS, parts=["experts.0"], expect="any")
class ExpertLoop(nn.Module):
    """Loses experts that the example does not hit (the loop of Mixtral)."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 4), nn.ModuleList(mlp() for _ in range(4))

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(2, dim=-1)
        mask = F.one_hot(chosen, 4).permute(2, 1, 0)
        result = torch.zeros_like(x)
        for index in mask.sum((1, 2)).nonzero().flatten().tolist():
            slot, row = torch.where(mask[index])
            result.index_add_(0, row, self.experts[index](x[row]) * weights[row, slot, None])
        return result


@trap(X, then=SIGNS)
class DenseRouting(nn.Module):
    """Loses nothing if top-k, gather and scatter stay what they are."""

    def __init__(self):
        super().__init__()
        self.gate, self.weight = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 6, 6))

    def forward(self, x):
        weights, chosen = self.gate(x).topk(2, dim=-1)
        mixed = torch.einsum("bi,bkij->bkj", x, self.weight[chosen])
        sparse = torch.zeros(x.shape[0], 4, dtype=x.dtype).scatter(1, chosen, weights.softmax(-1))
        return (mixed * weights.softmax(-1)[..., None]).sum(1), sparse


@trap(LENGTHS[0], then=LENGTHS[1:], parts=["embed"], casts=False)
class Packed(nn.Module):
    """Loses padding that a packed sequence skips, in the backward direction too."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = mlp(), nn.Linear(8, 3)
        self.lstm = nn.LSTM(6, 4, batch_first=True, bidirectional=True)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        output, (hidden, _) = self.lstm(packed)
        padded, sizes = pad_packed_sequence(output, batch_first=True)
        return self.out(padded), hidden, sizes


@trap(torch.rand(6, 4, generator=G), parts=["boxes", "scores"], grad=False)
class Suppression(nn.Module):
    """Loses a Python loop of non-maximum suppression after two captured heads."""

    def __init__(self):
        super().__init__()
        self.boxes, self.scores = mlp(4), nn.Sequential(nn.Linear(4, 1), nn.Tanh())

    def forward(self, x):
        corners, sizes = self.boxes(x).sigmoid().chunk(2, -1)
        boxes, scores = torch.cat([corners, corners + sizes], -1), self.scores(x)[:, 0]
        order, kept = scores.argsort(descending=True).tolist(), []
        while order:
            best = order.pop(0)
            kept.append(best)
            order = [other for other in order if self.overlap(boxes[best], boxes[other]) < 0.5]
        return {"boxes": boxes[kept], "scores": scores[kept], "kept": kept}

    @staticmethod
    def overlap(a, b):
        inner = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
        return inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner)


@trap(X, then=[call(X), call(X * torch.inf), call(X)], parts=["stem"])
class ClampsIfInfinite(Three):
    """Loses the guard `if not torch.isfinite(x).all()` of the DETR family."""

    def forward(self, x):
        x = self.stem(x)
        if not torch.isfinite(x).all():
            x = torch.nan_to_num(x, posinf=10.0, neginf=-10.0)
        return x


@trap(SEQUENCE, then=[call(SEQUENCE[:, :n]) for n in (4, 2, 5)])
class BranchOnSize(Three):
    """Loses the branch for other lengths."""

    def forward(self, x):
        x = self.stem(x)
        if x.shape[1] % 2:
            x = F.pad(x, (0, 0, 0, 1))
        return self.left(x) if x.shape[1] > 4 else self.right(x)


@trap(X, then=[call(X, n) for n in (1, 3, 2)])
class LoopOnArgument(Three):
    """Loses the number of rounds that the caller asks for."""

    def forward(self, x, rounds=2):
        for _ in range(rounds):
            x = x + self.left(x)
        return x


@trap(X, then=[call(X), call(X.repeat(1, 1) * 100), call(X)], parts=["stem"], expect="any")
class RaisesAndCatches(Three):
    """Loses an exception that the model raises and catches itself."""

    def forward(self, x):
        try:
            if x.abs().max() > 10:
                raise ValueError
            return self.stem(x)
        except ValueError:
            return self.left(x)


@trap(X, then=[call(X), call(X.repeat(3, 1)), call(X[:1])])
class LoopOverRows(Three):
    """Loses the number of rows that a Python loop runs over."""

    def forward(self, x):
        return torch.stack([self.stem(row) for row in x])


@trap(X, expect="any")
class GeneratesTokens(nn.Module):
    """Loses the length of a greedy decoding that ends at a token of its own choosing."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(5, 6), nn.GRUCell(6, 6), nn.Linear(6, 5)

    def forward(self, state):
        token, tokens = torch.zeros(len(state), dtype=torch.long), []
        while len(tokens) < 6 and not (tokens and (token == 4).all()):
            state = self.cell(self.embed(token), state)
            token = self.head(state).argmax(-1)
            tokens.append(token)
        return torch.stack(tokens, 1), state
