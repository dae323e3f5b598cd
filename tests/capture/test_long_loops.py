from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from itnet_compiler.capture.long_loops import LongLoop, long_loops_refused


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = x[0]
        for step in range(1, x.shape[0]):
            total = total + x[step]
        return total


class Unbound(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = x[0]
        for step in x.unbind(0):
            total = total + step
        return total


class Kept(nn.Module):
    """Makes a place for every step first, with a length that it has asked for before."""

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[0]
        states = [x[0]] * steps
        for step in range(1, steps):
            states[step] = states[step - 1] + x[step]
        return torch.stack(states)


class Sized(nn.Module):
    """Asks for the size, but loops over nothing."""

    def forward(self, x: Tensor) -> Tensor:
        size = int(x.shape[0])
        return x / size


@pytest.mark.parametrize("kind", [Summed, Unbound, Kept])
def test_a_long_loop_ends_the_trace_and_says_its_length(kind: type[nn.Module]) -> None:
    with pytest.raises(LongLoop) as caught, long_loops_refused():
        export(kind(), (torch.randn(70, 2),), dynamic_shapes=({0: Dim.AUTO},), strict=False)
    assert caught.value.length == 70


def test_short_loops_and_other_questions_are_let_through() -> None:
    with long_loops_refused():
        export(Summed(), (torch.randn(9, 2),), dynamic_shapes=({0: Dim.AUTO},), strict=False)
        export(Sized(), (torch.randn(70, 2),), dynamic_shapes=({0: Dim.AUTO},), strict=False)
    export(Summed(), (torch.randn(70, 2),), dynamic_shapes=({0: Dim.AUTO},), strict=False)
