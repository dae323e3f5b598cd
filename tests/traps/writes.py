"""Traps for memory: in-place operators on inputs and views, outputs that are inputs, buffers, parameters."""

import torch
from torch import nn

from .table import call, trap

G = torch.Generator().manual_seed(3)
X = torch.randn(4, 6, generator=G)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)


@trap(X, writes=True)
class AddsToInput(Layer):
    """Loses the write into the caller's tensor."""

    def forward(self, x):
        x.add_(1)
        return self.fc(x)


@trap(X, writes=True)
class ZeroesColumn(Layer):
    """Loses x[:, 0] = 0."""

    def forward(self, x):
        x[:, 0] = 0
        return self.fc(x)


@trap(X, writes=True)
class ReluOnInput(nn.Sequential):
    """Loses nn.ReLU(inplace=True) as the first layer."""

    def __init__(self):
        super().__init__(nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True))


@trap(X, writes=True)
class WritesThroughView(Layer):
    """Loses a write through a view of the input."""

    def forward(self, x):
        x.view(-1)[0] = 3
        return self.fc(x)


@trap(X, grad=False)
class WritesThroughChunks(Layer):
    """Loses mul_ on chunks, and changes the order of a read before and one after."""

    def forward(self, x):
        before = self.fc(x)
        first, second = x.chunk(2, dim=1)
        first.mul_(2)
        second.mul_(first)
        return before, self.fc(x)


@trap(X)
class WritesAfterUse(Layer):
    """Loses the order of a write into an intermediate value and the uses on either side of it."""

    def forward(self, x):
        x = self.fc(x)
        kept, total = x.clone(), x.sum(1)
        x[:, 1:3] += kept[:, :2]
        x.t()[0].copy_(total)
        return x, kept, total


@trap(X, writes=True)
class OutArgument(nn.Module):
    """Loses out=: a preallocated result."""

    def forward(self, x):
        result = torch.empty_like(x)
        torch.add(x.detach(), 1, out=result)
        return result


@trap(X)
class Filled(nn.Module):
    """Loses the writes into a tensor made inside, in a loop."""

    def forward(self, x):
        result = x.new_zeros(x.shape[1], x.shape[0])
        for index in range(x.shape[1]):
            result[index] = x[:, index] * index
        return result


@trap(X, then=[call(X, X), call(X, X + 1), call(X)], writes=True)
class WritesTwoArguments(Layer):
    """Loses which of two arguments was written, when they are one tensor."""

    def forward(self, x, y=None):
        y = x if y is None else y
        x.mul_(2)
        return self.fc(y)


@trap(X)
class Same(nn.Module):
    """Loses that the output is the input."""

    def forward(self, x):
        return x


@trap(X, writes=True)
class SameAfterWrite(nn.Module):
    """Loses that the output is the input, written."""

    def forward(self, x):
        return x.mul_(2)


@trap(X)
class ViewOfInput(nn.Module):
    """Loses that outputs share the memory of the input."""

    def forward(self, x):
        return x.view(-1), x[0], x.t(), x[:, ::2]


@trap(X)
class EvalIdentity(nn.Sequential):
    """Loses that dropout in eval mode and nn.Identity give back the very input."""

    def __init__(self):
        super().__init__(nn.Dropout(0.5), nn.Identity(), nn.Flatten(0))


@trap(X)
class ReturnsParameter(Layer):
    """Loses that outputs are the model's own parameter and buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(6.0))

    def forward(self, x):
        return self.fc(x), self.fc.weight, self.table, self.table[2:], self.fc.weight.t()


@trap(X)
class ReturnsTwice(Layer):
    """Loses that two outputs are one tensor, and that a third is a view of it."""

    def forward(self, x):
        x = self.fc(x)
        return {"a": x, "b": [x, x.view(-1)]}


@trap(call())
class NoArguments(nn.Module):
    """Loses a model without inputs: a learned prompt."""

    def __init__(self):
        super().__init__()
        self.prompt, self.fc = nn.Parameter(torch.randn(3, 6)), nn.Linear(6, 2)

    def forward(self):
        return self.fc(self.prompt)


@trap(X, expect="any")
class ConstantOutput(nn.Module):
    """Loses that a constant output is a new tensor at every call."""

    def forward(self, x):
        return torch.zeros(2), torch.tensor([1.0, 2.0])


@trap(X, writes=True, expect="any")
class SetsData(Layer):
    """Loses x.data = … and writes through x.data, which autograd does not see."""

    def forward(self, x):
        x.data.clamp_(-1, 1)
        return self.fc(x)


@trap(call([X, X + 1]), writes=True, expect="any")
class WritesIntoList(Layer):
    """Loses that forward appends to the caller's list and replaces an item."""

    def forward(self, xs):
        result = self.fc(xs[0] + xs[1])
        xs[0] = result.detach()
        xs.append(xs[1])
        return result


@trap(call({"x": X}), writes=True, expect="any")
class WritesIntoDict(Layer):
    """Loses the entry that forward adds to the caller's dict, as pipelines of dict-to-dict blocks do."""

    def forward(self, batch):
        batch["y"] = self.fc(batch["x"])
        return batch


@trap(X, writes=True, expect="any")
class Resizes(nn.Module):
    """Loses unsqueeze_: the caller's tensor has another shape afterwards."""

    def forward(self, x):
        x.unsqueeze_(0)
        return x * 2


@trap(X, expect="any")
class ReturnsDetached(Layer):
    """Loses that the output is detached, and still a view of a differentiable value."""

    def forward(self, x):
        x = self.fc(x)
        return x, x.detach(), x.data[0]
