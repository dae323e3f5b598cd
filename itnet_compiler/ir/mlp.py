"""Family ``mlp``: the kernel is a small network of the positions and features of both ends of a pair."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .domain import Band, Domain, Keys, reach
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .pair.builder import Builder
from .pair.program import QUERY, SHARED, SOURCE, Program, Shape
from .pair.weighting import allowed_pairs, apply_weights, weighted

__all__ = ["Mlp", "pairs_in"]

_SIDES = (("query", QUERY), ("source", SOURCE))


@dataclass(frozen=True)
class Mlp(Kernel):
    """A learned kernel: for query i at p_i with features u_i, and source j at p'_j with features u'_j,

        z(i, j) = W_q·[u_i, φ_a(p_i)] + W_s·[u'_j, φ_a(p'_j)] + W_r·φ_r(p_i − p'_j) + b      first layer
        z ← W_l·GELU(z) + b_l                                                              ``depth`` − 1 more
        κ(i, j) = W_o·GELU(z) + b_o                                                        one number a head
        y_i = Σ_j w_j·κ_h(i, j)·v_j,  or with ``normalise``  Σ_j w_j·exp(κ_h(i, j))·v_j / Σ_j w_j·exp(κ_h(i, j))

    and with ``base`` the network is added to a bilinear score, with a gate (relaxation: at g = 0 it is attention),

        κ_h(i, j) ← ⟨q_{i,h}, k_{j,h}⟩/√E + g_h·κ_h(i, j)

    with Fourier features φ(p) = [cos Ωp, sin Ωp] of frequencies Ω and the exact GELU(z) = z·Φ(z). The kernel of the
    integral transforms of ITNet (arXiv 2606.19538); terms whose operands are missing are left out.

    Operands:
        value: v, (B, H, M, V).
        query_position, source_position: p (1 or B, N, P), p' (1 or B, M, P).
        query_features, source_features: u (B, N, C), u' (B, M, C').
        frequencies: Ω of φ_r, (F, P).
        absolute: Ω of φ_a, (A, P).
        query_weight, source_weight, relative_weight: W_q (D, C + 2A), W_s (D, C' + 2A), W_r (D, 2F).
        bias: b, (D,).
        base_query, base_source, gate: q (B, N, H, E), k (B, M, H, E), g (H,), with ``base``.
        layers: The list [W_2, b_2, …, W_o, b_o]; W_l (D, D), W_o (H, D).
        measure: w, (1 or B, M): quadrature weights of the sources; not negative where the weights are normalised.
        mask: bool, (1 or B, 1 or N, M), True where a pair takes part. A query without any pair gets 0.

    Attributes:
        depth: Number of hidden layers.
        normalise: Whether κ is a score, and its softmax over the sources the weight.
        base: Whether it is added to a bilinear score.
    """

    family: ClassVar[str] = "mlp"
    value_map: ClassVar[str] = "value"

    depth: int = 1
    normalise: bool = False
    base: bool = False

    def properties(self, domain: Domain) -> frozenset[str]:
        """Normalised wherever a query has a source at all."""
        facts = {"linear"} | ({"normalised"} if self.normalise else set())
        return frozenset(facts | ({"causal"} if reach(domain)[1] == 0 else set()))

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """y, (B, H, N, V)."""
        return self.apply_matrix(domain, self.kernel_matrix(domain, **operands), **operands)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K with the measure in it, (B, H, N, M)."""
        numbers = self.numbers(**operands)
        allowed = allowed_pairs(domain, numbers, operands.get("mask"))
        return weighted(numbers, allowed, operands.get("measure"), self.normalise)

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_j K(i, j)·v_j."""
        return apply_weights(matrix, operands["value"])

    def numbers(self, **operands: Any) -> Tensor:
        """κ, (B, H, N, M)."""
        total = operands["bias"]
        for side, axis in (("query", 2), ("source", 1)):
            ends = [operands[f"{side}_features"]] if f"{side}_features" in operands else []
            if "absolute" in operands:
                phase = operands[f"{side}_position"] @ operands["absolute"].T
                ends += [phase.cos(), phase.sin()]
            if ends:
                batch = max(end.shape[0] for end in ends)
                joined = torch.cat([end.expand(batch, *end.shape[1:]) for end in ends], -1)
                total = total + (joined @ operands[f"{side}_weight"].T).unsqueeze(axis)
        if "frequencies" in operands:
            between = operands["query_position"].unsqueeze(2) - operands["source_position"].unsqueeze(1)
            phase = between @ operands["frequencies"].T
            total = total + torch.cat([phase.cos(), phase.sin()], -1) @ operands["relative_weight"].T
        for weight, bias in zip(operands["layers"][::2], operands["layers"][1::2], strict=True):
            total = F.gelu(total) @ weight.T + bias
        value, queries = operands["value"], _queries(operands)
        if self.base:
            query, source = operands["base_query"], operands["base_source"]
            score = torch.einsum("bihe,bjhe->bijh", query, source) / math.sqrt(query.shape[-1])
            total = score + operands["gate"] * total
        full = total.expand(value.shape[0], queries, value.shape[2], total.shape[-1])
        return full.permute(0, 3, 1, 2)

    def shapes_of_pair(self, operands: Operands) -> tuple[tuple[str, Shape], ...]:
        """Role and shape for one pair of what κ depends on; ``layers`` are given as ``layers_0`` …"""
        frame = ("value", "measure", "mask")
        ends = ("_position", "_features", "base_query", "base_source")
        return tuple(
            (role, tuple(int(n) for n in (tensor.shape[2:] if role.endswith(ends) else tensor.shape)))
            for role, tensor in operands.items()
            if role not in frame
        )

    def pair_program(self, shapes: dict[str, Shape]) -> Program:
        """κ as a pair program, from ``shapes_of_pair``."""
        b = Builder()

        def end(name: str, side: int) -> int:
            return b.input(name, side, shapes[name])

        def shared(name: str) -> int:
            return b.input(name, SHARED, shapes[name])

        def fourier(phase: int) -> list[int]:
            return [b.elementwise("cos", phase), b.elementwise("sin", phase)]

        total = shared("bias")
        for name, side in _SIDES:
            ends = [end(f"{name}_features", side)] if f"{name}_features" in shapes else []
            if "absolute" in shapes:
                ends += fourier(b.linear(end(f"{name}_position", side), shared("absolute")))
            if ends:
                total = b.add(total, b.linear(b.cat(ends, 0), shared(f"{name}_weight")))
        if "frequencies" in shapes:
            between = b.sub(end("query_position", QUERY), end("source_position", SOURCE))
            waves = b.cat(fourier(b.linear(between, shared("frequencies"))), 0)
            total = b.add(total, b.linear(waves, shared("relative_weight")))
        for place in range(0, 2 * self.depth, 2):
            hidden = b.linear(b.elementwise("gelu", total), shared(f"layers_{place}"))
            total = b.add(hidden, shared(f"layers_{place + 1}"))
        if self.base:
            heads = [b.input(f"base_{name}", side, shapes[f"base_{name}"]) for name, side in _SIDES]
            scale = b.constant(1.0 / math.sqrt(shapes["base_query"][-1]))
            score = b.sum(b.mul(b.mul(heads[0], scale), heads[1]), [1])
            total = b.add(score, b.mul(shared("gate"), total))
        return b.program([total])

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return self._sample(domain, roles, batch=2, heads=3, lengths=(7, 5), width=4)

    def _sample(
        self,
        domain: Domain,
        roles: tuple[str, ...],
        batch: int = 2,
        heads: int = 3,
        lengths: tuple[int, int] = (7, 7),
        width: int = 4,
        axes: int = 2,
        hidden: int = 6,
    ) -> Sample:
        (queries, sources), waves, slow, own, other = lengths, 3, 2, 5, 8
        extra = 2 * slow if "absolute" in roles else 0
        ends = {side: size if f"{side}_features" in roles else 0 for side, size in (("query", own), ("source", other))}
        sizes = [hidden] * self.depth + [heads]
        layers = []
        for before, after in itertools.pairwise(sizes):
            layers += [Draw((after, before), deviation=before**-0.5), Draw((after,), deviation=0.5)]
        everything = {
            "value": Draw((batch, heads, sources, width)),
            "query_position": Draw((batch, queries, axes)),
            "source_position": Draw((1, sources, axes)),
            "query_features": Draw((batch, queries, own)),
            "source_features": Draw((batch, sources, other)),
            "frequencies": Draw((waves, axes), deviation=2.0),
            "absolute": Draw((slow, axes)),
            "query_weight": Draw((hidden, ends["query"] + extra), deviation=0.5),
            "source_weight": Draw((hidden, ends["source"] + extra), deviation=0.5),
            "relative_weight": Draw((hidden, 2 * waves)),
            "bias": Draw((hidden,)),
            "layers": layers,
            "base_query": Draw((batch, queries, heads, 5)),
            "base_source": Draw((batch, sources, heads, 5)),
            "gate": Draw((heads,)),
            "measure": Draw((batch, sources), "positive"),
            "mask": Draw((batch, queries, sources), "bool"),
        }
        draws = {role: everything[role] for role in roles}
        return Sample(Spec(self, domain, "integral transform", roles), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Flops of one pair, after the first layer has been split, for each pair of the domain; GELU counts 22."""
        value, queries = operands["value"], int(_queries(operands))
        batch, heads, sources, width = map(int, value.shape)
        hidden = int(operands["bias"].shape[0])
        flops = 2 * hidden + self.depth * 22 * hidden + (self.depth - 1) * 2 * hidden**2
        flops += heads * (2 * hidden + 2 * width + (14 if self.normalise else 0))
        if self.base:
            flops += heads * (2 * int(operands["base_query"].shape[-1]) + 2)
        if "frequencies" in operands:
            waves, axes = map(int, operands["frequencies"].shape)
            flops += axes + waves * (2 * axes + 28) + 4 * waves * hidden
        moved = [*(tensor for role, tensor in operands.items() if role != "layers"), *operands["layers"], *outputs]
        total = sum(int(tensor.numel()) * tensor.element_size() for tensor in moved)
        return Work(batch * pairs_in(domain, queries, sources) * flops, total)

    @classmethod
    def samples(cls) -> list[Sample]:
        everywhere, past = Keys(), Keys(causal=True)
        positions = ("query_position", "source_position")
        relative = ("value", *positions, "frequencies", "relative_weight", "bias", "layers")
        features = ("value", "query_features", "source_features", "query_weight", "source_weight", "bias", "layers")
        full = (
            *("value", *positions, "query_features", "source_features", "frequencies", "absolute"),
            *("query_weight", "source_weight", "relative_weight", "bias", "layers", "measure", "mask"),
        )
        plain, scores, deep = cls(), cls(normalise=True), cls(depth=2)
        return [
            plain._sample(everywhere, full),
            scores._sample(everywhere, full),
            cls(normalise=True, base=True)._sample(past, (*full[:-2], "base_query", "base_source", "gate")),
            deep._sample(past, full[:-2], lengths=(9, 5), heads=1),
            cls(depth=3, normalise=True)._sample(past, full[:-2], lengths=(5, 9)),
            plain._sample(everywhere, relative, batch=1, axes=1, width=1),
            scores._sample(Band(2, 1), relative, lengths=(63, 63)),
            plain._sample(Band(3, 0), features, lengths=(7, 9), hidden=1),
            plain._sample(everywhere, features, lengths=(1, 1), heads=2),
            scores._sample(everywhere, features, lengths=(0, 7)),
            plain._sample(everywhere, features, lengths=(7, 0)),
            plain._sample(everywhere, (*features, "measure"), batch=0),
            scores._sample(everywhere, (*features, "measure"), lengths=(63, 7)),
        ]


def _queries(operands: Operands) -> int:
    """N, which may be symbolic."""
    return operands["query_features" if "query_features" in operands else "query_position"].shape[1]


def pairs_in(domain: Domain, queries: int, sources: int) -> int:
    """How many pairs (i, j) of N queries and M sources a domain of keys holds."""
    before, after = reach(domain)
    if before is None and after is None:
        return queries * sources
    total = 0
    for i in range(queries):
        first = 0 if before is None else max(0, i - before)
        last = sources if after is None else min(sources, i + after + 1)
        total += max(0, last - first)
    return total
