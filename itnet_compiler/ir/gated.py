"""Family ``gated``: nonlinear recurrences, LSTM, GRU and Elman networks, whose gates are fed by the carried state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .domain import Domain, Past
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["GATES", "Gated"]

# Blocks stacked in the rows of W_ih and W_hh.
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}

# Pointwise operations a step and unit besides the biases, counting σ and tanh as 5 each.
POINTWISE = {"lstm": 33, "gru": 23, "rnn_tanh": 6, "rnn_relu": 2}


@dataclass(frozen=True)
class Gated(Kernel):
    """A recurrent network, all its layers and directions, or one step of it.

    One layer in one direction, with x_t of shape (B, I) and h_t of shape (B, H); W_ih, W_hh, b_ih, b_hh hold the
    blocks of the gates stacked in the order in which they are named here:

        lstm        i, f, g, o = W_ih x_t + b_ih + W_hh h_{t−1} + b_hh
                    c_t = σ(f)·c_{t−1} + σ(i)·tanh(g),    h_t = σ(o)·tanh(c_t), with ``projection`` W_hr of that
        gru         r = σ(W_ir x_t + b_ir + W_hr h_{t−1} + b_hr),    z likewise
                    n = tanh(W_in x_t + b_in + r·(W_hn h_{t−1} + b_hn)),    h_t = (1 − z)·n + z·h_{t−1}
        rnn_tanh    h_t = tanh(W_ih x_t + b_ih + W_hh h_{t−1} + b_hh);    rnn_relu with max(0, ·)

    so that, with the gates at the states that occur, the carried state is an integral over the past:

        lstm        c_t = Σ_s K(t, s)·tanh(g_s) + …,    K(t, s) = σ(i_s) · Π_{s<τ≤t} σ(f_τ)
        gru         h_t = Σ_s K(t, s)·n_s + …,          K(t, s) = (1 − z_s) · Π_{s<τ≤t} z_τ

    where … is the initial state times the product over all steps. Layers feed h to the next layer; with two
    directions (``Past(directions=2)``) the second runs from the end, and both h are concatenated.

    Operands, as those of ``aten.lstm.input`` and its kin: ``input`` (T, B, I), or (B, T, I) with ``batch_first``;
    ``hidden`` (layers·directions, B, H), for lstm the list [h, c]; ``weights``, the flat list of [W_ih, W_hh, b_ih,
    b_hh, W_hr] (those there are) of each layer and direction. Returns (output, h) or (output, h, c). For one step
    (``Past(single_step=True)``): ``input`` (B, I), ``hidden`` (B, H) or [h, c], ``w_ih``, ``w_hh``, ``b_ih``,
    ``b_hh``; returns h or (h, c).

    Attributes:
        cell: ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``.
        layers: Number of stacked layers.
        bias: Whether b_ih and b_hh are there.
        dropout: Probability with which an input of the second and later layers is zeroed, as executed: 0 in eval.
        training: The ``train`` argument of the call.
        projection: Whether W_hr is there (lstm only).
        batch_first: Whether input and output start with the batch axis.
    """

    family: ClassVar[str] = "gated"
    value_map: ClassVar[str] = "candidate state"

    cell: str = "lstm"
    layers: int = 1
    bias: bool = True
    dropout: float = 0.0
    training: bool = False
    projection: bool = False
    batch_first: bool = False

    def __post_init__(self) -> None:
        if self.cell not in GATES:
            raise ValueError(f"cell {self.cell!r} is none of {', '.join(GATES)}")
        if self.projection and self.cell != "lstm":
            raise ValueError("only an lstm has a projection")
        if self.dropout and not self.training:
            raise ValueError("dropout is as executed: 0 where the call does not train")

    def properties(self, domain: Domain) -> frozenset[str]:
        assert isinstance(domain, Past)
        return frozenset({"causal"}) if domain.directions == 1 and not domain.single_step else frozenset()

    def evaluate(self, domain: Domain, **operands: Any) -> Any:
        """A plain loop over time. Dropout has the same distribution as the source's, not its stream."""
        assert isinstance(domain, Past)
        inputs, hidden = operands["input"], operands["hidden"]
        if domain.single_step:
            biases = [operands[role] for role in ("b_ih", "b_hh") if operands.get(role) is not None]
            state = self._step(inputs, self._state(hidden), [operands["w_ih"], operands["w_hh"], *biases])
            return state if self.cell == "lstm" else state[0]
        sequence = inputs.transpose(0, 1) if self.batch_first else inputs
        groups = self._groups(operands["weights"])
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.layers):
            if layer and self.dropout > 0.0:
                sequence = torch.dropout(sequence, self.dropout, True)
            outputs = []
            for direction in range(domain.directions):
                index = layer * domain.directions + direction
                state = tuple(part[index] for part in self._state(hidden))
                steps = sequence.flip(0) if direction else sequence
                visited = [state := self._step(x, state, groups[index]) for x in steps]
                output = torch.stack([h for h, *_ in visited])
                outputs.append(output.flip(0) if direction else output)
                last.append(state)
            sequence = torch.cat(outputs, -1)
        final = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
        return (sequence.transpose(0, 1) if self.batch_first else sequence, *final)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K(t, s) of a single layer in one direction, (B, H, T, T), with the gates at the states that occur."""
        return self.kernel_and_values(domain, **operands)[0]

    def kernel_and_values(self, domain: Domain, **operands: Any) -> tuple[Tensor, Tensor]:
        """K, (B, H, T, T), and what it integrates, (B, H, T): tanh(g_s) for lstm, n_s for gru."""
        assert isinstance(domain, Past)
        if self.cell not in ("lstm", "gru"):
            raise NotImplementedError(f"the state of {self.cell} goes through a nonlinearity at each step: no matrix")
        if domain != Past() or self.layers != 1:
            raise NotImplementedError("a kernel matrix is there for a single layer in one direction")
        weights = self._groups(operands["weights"])[0]
        state = tuple(part[0] for part in self._state(operands["hidden"]))
        keep, write, values = [], [], []
        for x in operands["input"].transpose(0, 1) if self.batch_first else operands["input"]:
            kept, written, value = self._gates(x, state, weights)[:3]
            state = self._step(x, state, weights)
            keep.append(kept)
            write.append(written)
            values.append(value)
        steps = range(len(keep))
        none = torch.zeros_like(keep[0])
        rows = []
        for t in steps:
            rows.append([math.prod(keep[s + 1 : t + 1], start=write[s]) if s <= t else none for s in steps])
        kernel = torch.stack([torch.stack(row, -1) for row in rows], -2)
        return kernel, torch.stack(values, -1)

    def _state(self, hidden: Any) -> tuple[Tensor, ...]:
        return tuple(hidden) if self.cell == "lstm" else (hidden,)

    def _groups(self, weights: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """The flat list of weights, cut by layer and direction."""
        size = 2 + 2 * self.bias + self.projection
        return [weights[start : start + size] for start in range(0, len(weights), size)]

    def _step(self, x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The state after one step: (h, c) for lstm, (h,) otherwise."""
        if self.cell not in ("lstm", "gru"):
            from_input, from_state = self._products(x, state, weights)
            total = from_input + from_state
            return (torch.tanh(total) if self.cell == "rnn_tanh" else torch.relu(total),)
        keep, write, value, *output_gate = self._gates(x, state, weights)
        carried = keep * state[-1] + write * value
        if self.cell == "gru":
            return (carried,)
        h = output_gate[0] * torch.tanh(carried)
        return (h @ weights[-1].T if self.projection else h), carried

    def _gates(self, x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(factor that the carried state keeps, factor of the new value, new value, for lstm also the output gate)."""
        from_input, from_state = self._products(x, state, weights)
        if self.cell == "lstm":
            i, f, g, o = (from_input + from_state).chunk(4, -1)
            return torch.sigmoid(f), torch.sigmoid(i), torch.tanh(g), torch.sigmoid(o)
        (r_x, z_x, n_x), (r_h, z_h, n_h) = from_input.chunk(3, -1), from_state.chunk(3, -1)
        z = torch.sigmoid(z_x + z_h)
        return z, 1.0 - z, torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)

    def _products(self, x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """W_ih x + b_ih and W_hh h + b_hh."""
        from_input, from_state = x @ weights[0].T, state[0] @ weights[1].T
        return (from_input + weights[2], from_state + weights[3]) if self.bias else (from_input, from_state)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        assert isinstance(domain, Past)
        return replace(self, dropout=0.0)._sample(domain, time=4, batch=3, features=5, units=7, roles=roles)

    def _sample(
        self, domain: Past, time: int, batch: int, features: int, units: int, roles: tuple[str, ...] = ()
    ) -> Sample:
        rows, out = GATES[self.cell] * units, units - 2 if self.projection else units
        if domain.single_step:
            state: Any = Draw((batch, units))
            draws: dict[str, Any] = {
                "input": Draw((batch, features)),
                "hidden": [state, state] if self.cell == "lstm" else state,
                "w_ih": Draw((rows, features)),
                "w_hh": Draw((rows, units)),
                "b_ih": Draw((rows,)),
                "b_hh": Draw((rows,)),
            }
            kept = roles or (tuple(draws) if self.bias else tuple(draws)[:4])
            draws = {role: draws[role] for role in kept}
            return Sample(Spec(self, domain, f"{self.cell}_cell", tuple(draws)), draws)
        states = [Draw((self.layers * domain.directions, batch, size)) for size in (out, units)]
        draws = {
            "input": Draw((batch, time, features) if self.batch_first else (time, batch, features)),
            "hidden": states if self.cell == "lstm" else states[1],
            "weights": [Draw(shape) for shape in self._weight_shapes(domain, features, units, out)],
        }
        return Sample(Spec(self, domain, self.cell, tuple(draws)), draws)

    def _weight_shapes(self, domain: Past, features: int, units: int, out: int) -> Iterator[tuple[int, ...]]:
        rows = GATES[self.cell] * units
        for layer in range(self.layers):
            for _ in range(domain.directions):
                yield rows, out * domain.directions if layer else features
                yield rows, out
                if self.bias:
                    yield (rows,)
                    yield (rows,)
                if self.projection:
                    yield out, units

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """2·B flops a step for every entry of every weight matrix, plus the pointwise part of each unit."""
        assert isinstance(domain, Past)
        inputs = operands["input"]
        if domain.single_step:
            matrices, units = [operands["w_ih"], operands["w_hh"]], operands["w_hh"].shape[1]
            rows = math.prod(int(size) for size in inputs.shape[:-1])
        else:
            matrices = [weight for weight in operands["weights"] if weight.dim() == 2]
            units = operands["weights"][0].shape[0] // GATES[self.cell] * self.layers * domain.directions
            rows = int(inputs.shape[0]) * int(inputs.shape[1])
        flops = rows * (2 * sum(int(weight.numel()) for weight in matrices) + POINTWISE[self.cell] * int(units))
        moved = [leaf for leaf in pytree.tree_leaves((dict(operands), outputs)) if isinstance(leaf, Tensor)]
        return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        past, both, one = Past(), Past(directions=2), Past(single_step=True)
        cases = []
        for cell in GATES:
            plain = cls(cell)
            cases += [
                plain._sample(past, time=7, batch=3, features=4, units=5),
                cls(cell, bias=False)._sample(past, time=1, batch=1, features=1, units=63),
                cls(cell, batch_first=True, training=True)._sample(past, time=7, batch=0, features=4, units=1),
                cls(cell, layers=2, batch_first=True)._sample(both, time=3, batch=7, features=4, units=2),
                plain._sample(one, time=1, batch=7, features=4, units=5),
                cls(cell, bias=False)._sample(one, time=1, batch=7, features=3, units=1),
            ]
        projected = cls("lstm", projection=True)
        cases += [
            cls("lstm")._sample(past, time=63, batch=2, features=3, units=4),
            projected._sample(past, time=3, batch=5, features=2, units=4),
            replace(projected, layers=2, bias=False)._sample(both, time=2, batch=3, features=4, units=5),
        ]
        return cases
