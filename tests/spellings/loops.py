"""Recurrences as people write them: a Python loop over time, in many styles. Each is one integral, whatever its length.

A program is a module; ``LOOPS`` maps its name to it, what it takes at a length T, and the origin of its node (None
where fission leaves none). ``NEAR_MISSES`` look like loops and are none, or not of that kind: whatever becomes of them,
they must compute the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LOOPS", "NEAR_MISSES", "Loop"]

B, I, H = 3, 5, 4  # noqa: E741


@dataclass(frozen=True)
class Loop:
    """A program.

    Attributes:
        make: Makes the module, given the length.
        inputs: Tensors for a length.
        origins: Origins of the nodes that are expected; None where anything is right.
    """

    make: Callable[[int], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    origins: tuple[str, ...] | None


LOOPS: dict[str, Loop] = {}
NEAR_MISSES: dict[str, Loop] = {}


def _sequence(steps: int) -> tuple[Tensor, ...]:
    return (torch.randn(B, steps, I),)


def _loop(
    *origins: str, table: dict[str, Loop] | None = None, inputs: Callable[[int], tuple[Tensor, ...]] = _sequence
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def register(cls: type[nn.Module]) -> type[nn.Module]:
        chosen = LOOPS if table is None else table
        assert cls.__name__ not in chosen
        known = origins if table is None else None
        takes_length = "steps" in cls.__init__.__annotations__
        make = (lambda steps: cls(steps)) if takes_length else (lambda steps: cls())
        chosen[cls.__name__] = Loop(make, inputs, known)
        return cls

    return register


def _near_miss(inputs: Callable[[int], tuple[Tensor, ...]] = _sequence) -> Any:
    return _loop(table=NEAR_MISSES, inputs=inputs)


class _Gated(nn.Module):
    """Weights for cells written out."""

    gates = 4

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(I, self.gates * H)
        self.h = nn.Linear(H, self.gates * H)

    def zeros(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], H)


# ── cells that are called


@_loop("lstm loop")
class LstmCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(I, H)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], H)
        outs = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("lstm loop")
class LstmCellStateGiven(LstmCell):
    def forward(self, x):
        state = None
        outs = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outs.append(state[0])
        return torch.stack(outs), state


@_loop("gru loop")
class GruCellLastOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(I, H)

    def forward(self, x):
        h = torch.zeros(x.size(0), H, dtype=x.dtype)
        for t in range(x.size(1)):
            h = self.cell(x[:, t, :], h)
        return h


@_loop("gru loop")
class GruCellBackwards(GruCellLastOnly):
    def forward(self, x):
        h = x.new_zeros(x.size(0), H)
        outs = []
        for t in reversed(range(x.size(1))):
            h = self.cell(x[:, t], h)
            outs.insert(0, h)
        return torch.stack(outs, dim=1)


@_loop("rnn loop")
class RnnCellTimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(I, H, bias=False, nonlinearity="relu")

    def forward(self, x):
        x = x.transpose(0, 1)
        h, outs = x.new_zeros(x.shape[1], H), []
        for t in range(len(x)):
            h = self.cell(x[t], h)
            outs += [h.unsqueeze(0)]
        return torch.cat(outs)


@_loop("loop")
class TwoLayersInOneLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTMCell(I, H), nn.LSTMCell(H, H)

    def forward(self, x):
        h1 = c1 = h2 = c2 = x.new_zeros(x.shape[0], H)
        outs = []
        for t in range(x.shape[1]):
            h1, c1 = self.first(x[:, t], (h1, c1))
            h2, c2 = self.second(h1, (h2, c2))
            outs.append(h2)
        return torch.stack(outs, 1)


@_loop("gru loop", "gru loop")
class TwoLoops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRUCell(I, H), nn.GRUCell(H, H)

    def forward(self, x):
        h, outs = x.new_zeros(x.shape[0], H), []
        for t in range(x.shape[1]):
            h = self.first(x[:, t], h)
            outs.append(h)
        h, last = x.new_zeros(x.shape[0], H), []
        for out in outs:
            h = self.second(out, h)
            last.append(h)
        return torch.stack(last, 1)


@_loop("gru loop", "gru loop")
class BothDirections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.GRUCell(I, H), nn.GRUCell(I, H)

    def forward(self, x):
        steps = x.shape[1]
        there, back = [], [x] * steps
        h = x.new_zeros(x.shape[0], H)
        for t in range(steps):
            h = self.there(x[:, t], h)
            there.append(h)
        h = x.new_zeros(x.shape[0], H)
        for t in range(steps - 1, -1, -1):
            h = self.back(x[:, t], h)
            back[t] = h
        return torch.cat([torch.stack(there, 1), torch.stack(back, 1)], -1)


# ── cells that are written out


@_loop("lstm loop")
class LstmWritten(_Gated):
    def forward(self, x):
        h, c = self.zeros(x), self.zeros(x)
        out = torch.empty(x.shape[0], x.shape[1], H, dtype=x.dtype)
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            out[:, t] = h
        return out


@_loop("lstm loop")
class LstmHoisted(_Gated):
    """The projection of all inputs at once, before the loop; gates in another order."""

    def forward(self, x):
        h, c = self.zeros(x), self.zeros(x)
        given, outs = self.x(x), []
        for t in range(x.shape[1]):
            gates = given[:, t] + F.linear(h, self.h.weight)
            f, o, i, g = gates.split(H, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outs.append(h)
        return torch.stack(outs, 1), c


@_loop("lstm loop")
class LstmJoined(nn.Module):
    """One product of input and state together."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(I + H, 4 * H)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], H)
        outs = []
        for t in range(x.shape[1]):
            gates = self.all(torch.cat([x[:, t], h], -1))
            ifo, g = torch.sigmoid(gates[:, : 3 * H]), torch.tanh(gates[:, 3 * H :])
            c = ifo[:, H : 2 * H] * c + ifo[:, :H] * g
            h = ifo[:, 2 * H :] * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("lstm loop")
class LstmFourProducts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(I, H) / 2) for _ in range(4)])
        self.u = nn.ParameterList([nn.Parameter(torch.randn(H, H) / 2) for _ in range(4)])
        self.b = nn.ParameterList([nn.Parameter(torch.randn(H)) for _ in range(4)])

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], H)
        outs = []
        for t in range(x.shape[1]):
            i, f, o, g = (x[:, t] @ w + h @ u + b for w, u, b in zip(self.w, self.u, self.b, strict=True))
            c = torch.sigmoid(f + 1.0) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("gru loop")
class GruWritten(_Gated):
    gates = 3

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            x_r, x_z, x_n = self.x(x[:, t]).chunk(3, 1)
            h_r, h_z, h_n = self.h(h).chunk(3, 1)
            r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
            n = torch.tanh(x_n + r * h_n)
            h = (1 - z) * n + z * h
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("gru loop")
class GruOtherConvention(_Gated):
    gates = 3

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            x_z, x_r, x_n = self.x(x[:, t]).chunk(3, 1)
            h_z, h_r, h_n = self.h(h).chunk(3, 1)
            z = torch.sigmoid(x_z + h_z)
            n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            h = h + z * (n - h)
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("rnn loop")
class ElmanWritten(_Gated):
    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for step in x.split(1, dim=1):
            h = torch.tanh(self.x(step.squeeze(1)) + self.h(h))
            outs.append(h)
        return torch.stack(outs, dim=-1)


# ── other steps


@_loop("loop")
class GruOriginal(_Gated):
    """The reset gate before the product, as in the paper: no library layer."""

    gates = 2

    def __init__(self) -> None:
        super().__init__()
        self.n = nn.Linear(I + H, H)

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            r, z = torch.sigmoid(self.x(x[:, t]) + self.h(h)).chunk(2, -1)
            n = torch.tanh(self.n(torch.cat([x[:, t], r * h], -1)))
            h = (1 - z) * h + z * n
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("loop")
class Normalised(_Gated):
    gates = 1

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.read = nn.LayerNorm(H), nn.Linear(H, 2)

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.norm(self.x(x[:, t]) + self.h(h)))
            outs.append(self.read(F.relu(h)))
        return torch.stack(outs, 1)


@_loop("loop")
class TwoStepsBack(_Gated):
    gates = 1

    def forward(self, x):
        h = before = self.zeros(x)
        outs = []
        for t in range(x.shape[1]):
            h, before = torch.sin(self.x(x[:, t]) + self.h(h) - before), h
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("loop")
class StatesSwapped(_Gated):
    gates = 1

    def forward(self, x):
        a, b = self.zeros(x), self.zeros(x) + 1
        outs = []
        for t in range(x.shape[1]):
            a, b = b, torch.tanh(self.h(a) * b + self.x(x[:, t]))
            outs.append(a + b)
        return torch.stack(outs, 1)


@_loop("loop")
class InPlace(_Gated):
    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            new = self.h(h)
            new += self.x(x[:, t])
            new.sigmoid_()
            h = new
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("loop")
class RungeKutta(nn.Module):
    """A fixed-step solver: nothing is given from step to step but the time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(H + 1, 7), nn.Tanh(), nn.Linear(7, H))
        self.steps = steps

    def slope(self, t: float, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, torch.full_like(y[:, :1], t)], -1))

    def forward(self, y):
        width = 1 / self.steps
        for step in range(self.steps):
            t = step * width
            k1 = self.slope(t, y)
            k2 = self.slope(t, y + width / 2 * k1)
            y = y + width * k2
        return y


LOOPS["RungeKutta"] = Loop(lambda steps: RungeKutta(steps), lambda steps: (torch.randn(B, H),), ("loop",))


@_loop("loop")
class Iteration(nn.Module):
    """Weight-tied iterations towards a fixed point."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.w, self.steps = nn.Linear(I, I), steps

    def forward(self, x):
        z = torch.zeros_like(x)
        for _ in range(self.steps):
            z = torch.tanh(self.w(z) + x)
        return z


@_loop("loop")
class FirstStepPeeled(_Gated):
    gates = 1

    def forward(self, x):
        h = torch.tanh(self.x(x[:, 0]))
        outs = [h]
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.x(x[:, t]) * torch.cos(self.h(h)))
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("loop")
class Teacher(nn.Module):
    """What a step gives out is what the next one takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(I, H), nn.Linear(H, I)

    def forward(self, x):
        h, y, outs = x.new_zeros(x.shape[0], H), x[:, 0], []
        for _ in range(x.shape[1]):
            h = self.cell(y, h)
            y = self.out(h)
            outs.append(y)
        return torch.stack(outs, 1)


@_loop("loop")
class OtherAxis(_Gated):
    """Over the last axis, several at a time."""

    gates = 1

    def forward(self, x):
        x = x.repeat(1, 1, 2).transpose(1, 2)  # (B, 2·I, T)
        h, outs = self.zeros(x), []
        for piece in torch.chunk(x, x.shape[2], 2):
            h = torch.erf(self.x(piece[:, :I, 0]) - self.x(piece[:, I:, 0]) ** 2 + self.h(h))
            outs.append(h[..., None])
        return torch.cat(outs, -1)


# ── linear recurrences


@_loop("linear recurrence")
class MovingAverage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        y, outs = x[:, 0], []
        for t in range(x.shape[1]):
            y = self.alpha * x[:, t] + (1 - self.alpha) * y
            outs.append(y)
        return torch.stack(outs, 1)


@_loop("linear recurrence")
class ConstantDecay(nn.Module):
    """A number for a decay, time first, written into a buffer."""

    def forward(self, x):
        x = x.transpose(0, 1)
        out, h = torch.zeros_like(x), torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 0.9 * h + x[t]
            out[t] = h
        return out


@_loop("loop")
class RunningMean(nn.Module):
    def forward(self, x):
        total, outs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            total = total + x[:, t]
            outs.append(total / (t + 1))
        return torch.stack(outs, 1)


@_loop("linear recurrence")
class MinGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z, self.n = nn.Linear(I, H), nn.Linear(I, H)

    def forward(self, x):
        h, outs = x.new_zeros(x.shape[0], H), []
        for t in range(x.shape[1]):
            z = torch.sigmoid(self.z(x[:, t]))
            h = (1 - z) * h + z * self.n(x[:, t])
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("linear recurrence")
class Lerped(MinGru):
    def forward(self, x):
        h, outs = x.new_zeros(x.shape[0], H), []
        for t in reversed(range(x.shape[1])):
            h = torch.lerp(h, self.n(x[:, t]), torch.sigmoid(self.z(x[:, t])))
            outs.append(h)
        return torch.stack(outs[::-1], 1), h


@_loop("linear recurrence")
class Masked(MinGru):
    """Steps that are masked out leave the state as it is."""

    def forward(self, x):
        keep = x[..., 0] > 0
        h, outs = x.new_zeros(x.shape[0], H), []
        for t in range(x.shape[1]):
            h = torch.where(keep[:, t, None], 0.5 * h + self.n(x[:, t]), h)
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("loop", inputs=lambda steps: (torch.randn(B, steps, I), 0.5 + 0.3 * torch.arange(B)))
class Ended(_Gated):
    """Sequences of several lengths, told by the number of the step."""

    gates = 1

    def forward(self, x, ends):
        ends, h, outs = (ends * x.shape[1]).long(), x.new_zeros(x.shape[0], H), []
        for t in range(x.shape[1]):
            h = torch.where((t < ends)[:, None], torch.tanh(self.x(x[:, t]) + self.h(h)), h)
            outs.append(h)
        return torch.stack(outs, 1)


@_loop("linear recurrence", "linear recurrence")
class Cascade(nn.Module):
    """One average of another, and what it was one step before."""

    def forward(self, x):
        a = b = torch.zeros_like(x[:, 0])
        outs = []
        for t in range(x.shape[1]):
            before = a
            a = 0.5 * a + x[:, t]
            b = 0.25 * b + a - before
            outs.append(torch.relu(b))
        return torch.stack(outs, 1)


@_loop("linear recurrence")
class RgLru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.rate = nn.Linear(I, 2 * I), nn.Parameter(torch.randn(I))

    def forward(self, x):
        r, i = torch.sigmoid(self.gate(x)).chunk(2, -1)
        a = torch.exp(-8.0 * F.softplus(self.rate) * r)
        given = torch.sqrt(1 - a**2) * (i * x)
        h, out = torch.zeros(x.shape[0], I, dtype=x.dtype), torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = a[:, t] * h + given[:, t]
            out[:, t] = h
        return out


@_loop("linear recurrence")
class SelectiveScan(nn.Module):
    """Mamba's, as its reference writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(I, H))
        self.project, self.D = nn.Linear(I, I + 2 * H), nn.Parameter(torch.randn(I))

    def forward(self, x):
        delta, b, c = self.project(x).split([I, H, H], -1)
        delta, a = F.softplus(delta), -torch.exp(self.A)
        decay = torch.exp(torch.einsum("btd,dn->btdn", delta, a))
        given = torch.einsum("btd,btn,btd->btdn", delta, b, x)
        state, ys = x.new_zeros(x.shape[0], I, H), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + given[:, t]
            ys.append(torch.einsum("bdn,bn->bd", state, c[:, t]))
        return torch.stack(ys, 1) + x * self.D


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(I, H), nn.Linear(I, H), nn.Linear(I, 6)


@_loop("linear attention")
class LinearAttention(_Heads):
    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        state, outs = x.new_zeros(x.shape[0], H, 6), []
        for t in range(x.shape[1]):
            state = state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
            outs.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
        return torch.stack(outs, 1)


@_loop("linear attention", "linear recurrence")
class LinearAttentionNormalised(_Heads):
    def forward(self, x):
        q, k, v = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1, self.v(x)
        state, total, outs = x.new_zeros(x.shape[0], H, 6), x.new_zeros(x.shape[0], H), []
        for t in range(x.shape[1]):
            state = state + torch.einsum("bk,bv->bkv", k[:, t], v[:, t])
            total = total + k[:, t]
            y = torch.einsum("bk,bkv->bv", q[:, t], state)
            outs.append(y / (q[:, t] * total).sum(-1, keepdim=True))
        return torch.stack(outs, 1)


@_loop("linear attention")
class Retention(_Heads):
    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        state, outs = x.new_zeros(x.shape[0], H, 6), []
        for t in range(x.shape[1]):
            state = 0.9 * state + k[:, t, :, None] * v[:, t, None, :]
            outs.append((state * q[:, t, :, None]).sum(1))
        return torch.stack(outs, 1)


# ── no state at all


@_loop()
class EachAlone(nn.Module):
    """The steps have nothing to do with one another."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(I, H)

    def forward(self, x):
        return torch.stack([torch.relu(self.w(x[:, t])) for t in range(x.shape[1])], 1)


@_loop()
class Shifted(nn.Module):
    """Each step looks at the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(2 * I, H)

    def forward(self, x):
        before, outs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            outs.append(torch.tanh(self.w(torch.cat([before, x[:, t]], -1))))
            before = x[:, t]
        return torch.stack(outs, 1)


# ── near misses


@_near_miss()
class StepCounts(_Gated):
    """A number that does not change evenly."""

    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.x(x[:, t]) + self.h(h)) * 0.5**t
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class EveryOther(_Gated):
    """The step is another one every other time."""

    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.h(h) + self.x(x[:, t])) if t % 2 else torch.sigmoid(self.h(h) + self.x(x[:, t]))
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class ChangesHalfway(_Gated):
    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.h(h) + self.x(x[:, t]))
            if t == x.shape[1] // 2:
                h = h * 2
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class OneInputTwice(_Gated):
    """Positions that are not taken one after the other."""

    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.h(h) + self.x(x[:, min(t, 5)]))
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class Growing(nn.Module):
    """What is carried becomes longer: a cache of keys."""

    def forward(self, x):
        kept, outs = x[:, :1], []
        for t in range(1, x.shape[1]):
            kept = torch.cat([kept, x[:, t : t + 1]], 1)
            outs.append(kept.softmax(1).sum(1))
        return torch.stack(outs, 1)


@_near_miss()
class ReadsWhatItWrites(nn.Module):
    def forward(self, x):
        out = x.clone()
        for t in range(1, x.shape[1]):
            out[:, t] = out[:, t] + torch.tanh(out[:, t - 1])
        return out


@_near_miss()
class CollectedThenChanged(_Gated):
    """What was collected is changed in place afterwards: all entries of the list are one tensor."""

    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h.mul_(0.5).add_(self.x(x[:, t]))
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class InputChanged(nn.Module):
    """The buffer that the steps read is written while they run."""

    def forward(self, x):
        x = x * 1
        h, outs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.tanh(h + x[:, t])
            x[:, -1] = h
            outs.append(h)
        return torch.stack(outs, 1), x


@_near_miss()
class StatesExchanged(_Gated):
    """The LSTM with its two states exchanged after every step."""

    def forward(self, x):
        h, c = self.zeros(x), self.zeros(x)
        outs = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
            h, c = c, h
        return torch.stack(outs, 1)


@_near_miss()
class Peephole(_Gated):
    def forward(self, x):
        h, c = self.zeros(x), self.zeros(x)
        outs = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f + c) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class SigmoidOfTheCandidate(_Gated):
    def forward(self, x):
        h, c = self.zeros(x), self.zeros(x)
        outs = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.sigmoid(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class GatesOfTheCell(_Gated):
    """The gates are fed by c, not by h."""

    def forward(self, x):
        h, c = self.zeros(x), self.zeros(x)
        outs = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(c)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class GruUpdateFedByCandidate(_Gated):
    gates = 3

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            x_r, x_z, x_n = self.x(x[:, t]).chunk(3, 1)
            h_r, h_z, h_n = self.h(h).chunk(3, 1)
            n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            z = torch.sigmoid(x_z + h_z + n)
            h = (1 - z) * n + z * h
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class DecayFromTheState(nn.Module):
    """Looks like a linear recurrence, but the decay depends on what it decays."""

    def forward(self, x):
        h, outs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.sigmoid(h) * h + x[:, t]
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class Interleaved(_Gated):
    """Two values a step go into one list."""

    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.h(h) + self.x(x[:, t]))
            outs += [h, h * 2]
        return torch.stack(outs, 1)


@_near_miss()
class HalfCollected(_Gated):
    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.h(h) + self.x(x[:, t]))
            if t >= x.shape[1] // 2:
                outs.append(h)
        return torch.stack(outs, 1), h


@_near_miss()
class OfSomeSteps(_Gated):
    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.h(h) + self.x(x[:, t]))
            outs.append(h)
        return outs[3], outs[-1], torch.cat([outs[7], outs[2]], -1)


@_near_miss()
class Dropped(_Gated):
    """Random numbers at every step: their order must stay."""

    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.h(F.dropout(h, 0.5, self.training)) + self.x(F.dropout(x[:, t], 0.5, self.training)))
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class Broadcast(nn.Module):
    """The state begins smaller than it is later."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(I))

    def forward(self, x):
        h, outs = self.start, []
        for t in range(x.shape[1]):
            h = torch.tanh(h + x[:, t])
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class ResultChanged(_Gated):
    """What comes out is written to, and so is a part of the input."""

    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1]):
            h = self.h(h) + self.x(x[:, t])
            outs.append(h)
        out = torch.stack(outs, 1)
        out += 1
        out[:, 0] = 0
        return out, h


@_near_miss()
class WeightsOfTheirOwn(nn.Module):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(I, I) for _ in range(steps)])

    def forward(self, x):
        h, outs = torch.zeros_like(x[:, 0]), []
        for t, layer in enumerate(self.layers):
            h = torch.tanh(layer(h) + x[:, t])
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class LayersTied(nn.Module):
    """One layer used again and again is a deep network, whose convolutions are integrals of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(I, I, 3, padding=1)

    def forward(self, x):
        x = x.transpose(1, 2)
        for _ in range(10):
            x = torch.relu(self.layer(x))
        return x


@_near_miss()
class WindowsOverlap(_Gated):
    gates = 1

    def forward(self, x):
        h, outs = self.zeros(x), []
        for t in range(x.shape[1] - 1):
            h = torch.tanh(self.h(h) + self.x(x[:, t : t + 2].mean(1)))
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class ProjectionThenChanged(_Gated):
    """The input is changed after it was projected: the projection is no longer that of the input."""

    def forward(self, x):
        x = x * 1
        given = F.linear(x, self.x.weight.detach())
        x.mul_(3)
        h, c = self.zeros(x), self.zeros(x)
        outs = []
        for t in range(x.shape[1]):
            i, f, g, o = (given[:, t] + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1), x


@_near_miss()
class ProjectionWithoutGradients(_Gated):
    def forward(self, x):
        with torch.no_grad():
            given = self.x(x)
            pieces = given.unbind(1)
        h, c = self.zeros(x), self.zeros(x)
        outs = []
        for piece in pieces:
            i, f, g, o = (piece + self.h(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1)


@_near_miss()
class BufferReadWhole(_Gated):
    """Every step looks at all that has been written."""

    gates = 1

    def forward(self, x):
        out = torch.zeros(x.shape[0], x.shape[1], H, dtype=x.dtype)
        h = self.zeros(x)
        for t in range(x.shape[1]):
            h = torch.tanh(self.h(h) + self.x(x[:, t]) + out.sum(1))
            out[:, t] = h
        return out
