"""The time limit of tracing with symbolic sizes."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from itnet_compiler.capture.patience import OutOfTime, limited

X = torch.randn(3, 5, 4)
ALL = ({0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.AUTO},)


class Joined(nn.Module):
    """Asks about sizes while a size within each example is free."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


class Fixed(nn.Module):
    """Asks about sizes, when time is up, with all but the batch fixed."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.shape[0], 5, 4)
        with limited(0.0):
            return torch.cat([x, x], 1)


def test_tracing_ends_where_a_size_within_an_example_is_free() -> None:
    with pytest.raises(OutOfTime), limited(0.0):
        export(Joined(), (X,), dynamic_shapes=ALL, strict=False)


def test_tracing_goes_on_where_only_the_batch_is_free() -> None:
    program = export(Fixed(), (X,), dynamic_shapes=ALL, strict=False)
    assert program.module()(torch.randn(7, 5, 4)).shape == (7, 10, 4)
