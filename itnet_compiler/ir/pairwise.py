"""Family ``mlp``, written by users: the kernel is a function of one pair in plain torch, traced into a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .domain import Band, Domain, Keys, reach
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .mlp import pairs_in
from .pair.builder import Builder
from .pair.dense import run
from .pair.primitives import ELEMENTWISE
from .pair.program import PAIR, QUERY, SHARED, SOURCE, Input, Program, Shape
from .pair.split import distribute, stages
from .pair.weighting import allowed_pairs, apply_weights, weighted

__all__ = ["Pairwise", "flops_of_pair"]


@dataclass(frozen=True)
class Pairwise(Kernel):
    """A kernel given as a program over one pair, κ(p_i, p'_j, u_i, u'_j, …):

        y_i = Σ_j w_j·κ_h(i, j)·v_j,  or with ``normalise``  Σ_j w_j·exp(κ_h(i, j))·v_j / Σ_j w_j·exp(κ_h(i, j))

    Operands:
        value: v, (B, H, M, V).
        inputs of the program, by name: of the query (1 or B, N, *shape), of the source (1 or B, M, *shape), shared
            (*shape).
        measure: w, (1 or B, M); not negative where the weights are normalised.
        mask: bool, (1 or B, 1 or N, M), True where a pair takes part. A query without any pair gets 0.
        like_queries: (…, N, any), only where the program has no input of the query, for N.

    Attributes:
        program: One output, of shape (H,), or () for all heads alike.
        normalise: Whether κ is a score, and its softmax over the sources the weight.
    """

    family: ClassVar[str] = "mlp"
    value_map: ClassVar[str] = "value"

    program: Program
    normalise: bool = False

    def describe(self) -> str:
        """``mlp(function of pos_q, pos_k)``."""
        names = ", ".join(item.name for item in self.program.inputs if item.side != SHARED)
        return f"{self.family}(function of {names or 'nothing'}{', normalise' if self.normalise else ''})"

    def properties(self, domain: Domain) -> frozenset[str]:
        """Normalised wherever a query has a source at all."""
        facts = {"linear"} | ({"normalised"} if self.normalise else set())
        return frozenset(facts | ({"causal"} if reach(domain)[1] == 0 else set()))

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """y, (B, H, N, V)."""
        return self.apply_matrix(domain, self.kernel_matrix(domain, **operands), **operands)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K with the measure in it, (B, H, N, M)."""
        value = operands["value"]
        inputs = {item.name: _placed(item, operands[item.name]) for item in self.program.inputs}
        (numbers,) = run(self.program, inputs or {"": value[0, 0, :0, :0]}, 3)
        numbers = numbers if numbers.dim() == 4 else numbers.unsqueeze(-1)
        queries = self.queries(operands)
        numbers = numbers.expand(value.shape[0], queries, value.shape[2], value.shape[1]).permute(0, 3, 1, 2)
        allowed = allowed_pairs(domain, numbers, operands.get("mask"))
        return weighted(numbers.to(value.dtype), allowed, operands.get("measure"), self.normalise)

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_j K(i, j)·v_j."""
        return apply_weights(matrix, operands["value"])

    def queries(self, operands: Operands) -> int:
        """N."""
        for item in self.program.inputs:
            if item.side == QUERY:
                return int(operands[item.name].shape[1])
        return int(operands["like_queries"].shape[-2])

    def shapes_of_pair(self, operands: Operands) -> tuple[tuple[str, Shape], ...]:
        """None: the program has its own."""
        return ()

    def pair_program(self, shapes: dict[str, Shape]) -> Program:
        """The program; its shapes are its own."""
        return self.program

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        heads = self.program.values[self.program.outputs[0]].shape
        batch, queries, sources, width = [n for n in (4, 7, 5, 11, 6) if n not in heads][:4]
        return self._sample(domain, roles, batch=batch, lengths=(queries, sources), width=width)

    def _sample(
        self, domain: Domain, roles: tuple[str, ...], batch: int = 2, lengths: tuple[int, int] = (7, 7), width: int = 4
    ) -> Sample:
        queries, sources = lengths
        (output,) = (self.program.values[number] for number in self.program.outputs)
        heads = output.shape[0] if output.shape else 3
        lead = {SHARED: (), QUERY: (batch, queries), SOURCE: (batch, sources)}
        everything = {
            "value": Draw((batch, heads, sources, width)),
            "measure": Draw((batch, sources), "positive"),
            "mask": Draw((batch, queries, sources), "bool"),
            "like_queries": Draw((queries, 1)),
        }
        for item in self.program.inputs:
            deviation = item.shape[-1] ** -0.5 if item.side == SHARED and item.shape else 1.0
            everything[item.name] = Draw((*lead[item.side], *item.shape), deviation=deviation)
        draws = {role: everything[role] for role in roles}
        return Sample(Spec(self, domain, "kernel function", roles), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Flops of the part of the program that is left for each pair, for each pair of the domain."""
        batch, heads, sources, width = map(int, operands["value"].shape)
        flops = flops_of_pair(self.program) + heads * (2 * width + (14 if self.normalise else 0))
        moved = [*operands.values(), *outputs]
        total = sum(int(tensor.numel()) * tensor.element_size() for tensor in moved)
        return Work(batch * pairs_in(domain, self.queries(operands), sources) * flops, total)

    @classmethod
    def samples(cls) -> list[Sample]:
        everywhere, past = Keys(), Keys(causal=True)
        network, distance, constant = _network(), _distance(), _constant()
        names = tuple(item.name for item in network.inputs)
        lone = tuple(item.name for item in distance.inputs)
        return [
            cls(network)._sample(everywhere, ("value", *names)),
            cls(network, True)._sample(everywhere, ("value", *names, "measure", "mask")),
            cls(network)._sample(past, ("value", *names, "measure", "mask"), lengths=(9, 5)),
            cls(network, True)._sample(Band(2, 1), ("value", *names), lengths=(63, 63)),
            cls(distance, True)._sample(everywhere, ("value", *lone), lengths=(1, 63)),
            cls(distance)._sample(Band(3, 0), ("value", *lone, "measure"), lengths=(63, 7), width=1),
            cls(distance, True)._sample(everywhere, ("value", *lone), lengths=(0, 7)),
            cls(distance)._sample(everywhere, ("value", *lone), lengths=(7, 0)),
            cls(constant, True)._sample(past, ("value", "like_queries", "level")),
        ]


def _placed(item: Input, tensor: Tensor) -> Tensor:
    """With axes for batch, query and source in front."""
    if item.side == QUERY:
        return tensor.unsqueeze(2)
    return tensor.unsqueeze(1) if item.side == SOURCE else tensor[None, None, None]


def flops_of_pair(program: Program) -> int:
    """Floating-point operations for one pair, once what is of one side alone has been taken out."""
    core = stages(distribute(program)).core
    return sum(_flops(core, number) for number, side in enumerate(core.sides) if side == PAIR)


def _flops(core: Program, number: int) -> int:
    value = core.values[number]
    if value.op == "linear":
        return 2 * value.size * core.values[value.args[0]].shape[-1]
    if value.op in ("sum", "amax"):
        return core.values[value.args[0]].size
    return value.size * (ELEMENTWISE[value.op].flops if value.op in ELEMENTWISE else 20 * (value.op == "power"))


# -- Programs of the samples -------------------------------------------------------------------------------------


def _network() -> Program:
    """Two heads: a layer over differences, a product of features, and a reduction."""
    b = Builder()
    between = b.sub(b.input("pos_q", QUERY, (2,)), b.input("pos_k", SOURCE, (2,)))
    feat_q, feat_k = b.input("feat_q", QUERY, (6,)), b.input("feat_k", SOURCE, (6,))
    first = b.linear(b.cat([b.elementwise("sin", between), feat_q, feat_k], 0), b.input("first", SHARED, (5, 14)))
    hidden = b.elementwise("tanh", b.add(first, b.input("bias", SHARED, (5,))))
    second = b.linear(hidden, b.input("second", SHARED, (2, 5)))
    heads = [b.reshape(tensor, (2, 3)) for tensor in (feat_q, feat_k)]
    return b.program([b.add(second, b.sum(b.mul(*heads), [1]))])


def _distance() -> Program:
    """One number for all heads: a bell of the distance between two points."""
    b = Builder()
    between = b.sub(b.input("pos_q", QUERY, (3,)), b.input("pos_k", SOURCE, (3,)))
    square = b.sum(b.mul(between, between), [0])
    return b.program([b.elementwise("exp", b.mul(square, b.constant(-0.5)))])


def _constant() -> Program:
    """The same number for every pair."""
    b = Builder()
    return b.program([b.input("level", SHARED, (3,))])
