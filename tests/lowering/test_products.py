"""The lowering ``products``: attention rounds as it was written, wherever its scale was."""

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.errors import ItnetError

SCALES = {
    "of the query": lambda q, k, v: ((q * 0.3) @ k.mT).softmax(-1) @ v,
    "divides the key": lambda q, k, v: (q @ (k / 3.3).mT).softmax(-1) @ v,
    "of both": lambda q, k, v: ((q * 0.7) @ (k.mT * 0.7)).softmax(-1) @ v,
    "divides the scores": lambda q, k, v: (q @ k.mT / 3.3).softmax(-1) @ v,
    "of everything": lambda q, k, v: ((q / 1.7) @ k.mT * 0.9).softmax(-1) @ v,
    "a tensor": lambda q, k, v: (q @ k.mT / torch.tensor(3.3)).softmax(-1) @ v,
    "of a sum": lambda q, k, v: ((q @ k.mT + k[..., 0].unsqueeze(-2)) * 0.3).softmax(-1) @ v,
}


class Attends(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, q, k, v):
        return self.function(q + 1, k + 1, v + 1)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scale_is_where_it_was_written(name, dtype):
    torch.manual_seed(0)
    model = Attends(SCALES[name])
    inputs = [torch.randn(2, 3, length, 48, dtype=dtype, requires_grad=True) for length in (7, 9, 9)]
    unified = itnet.unify(model, tuple(inputs))
    itnet.lower(unified, method="products", only="attention")
    expected, found = model(*inputs), unified(*inputs)
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, weights), torch.autograd.grad(expected, inputs, weights), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_what_is_no_attention_is_refused():
    unified = itnet.unify(nn.Conv1d(2, 3, 3), torch.randn(1, 2, 8))
    with pytest.raises(ItnetError, match="was not written as products and a softmax"):
        itnet.lower(unified, method="products", only="*")
