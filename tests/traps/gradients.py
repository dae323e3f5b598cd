"""Traps for gradients: custom functions, checkpointing, blocks without gradients, parameters that want none."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from .table import trap

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rate):
        ctx.rate = rate
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.rate * grad, None


class Scale2(torch.autograd.Function):
    """New style: forward without ctx, setup_context apart, several inputs and outputs."""

    @staticmethod
    def forward(x, y):
        return x * y, x + y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, first, second):
        x, y = ctx.saved_tensors
        return first * y * 3 + second, first * x * 3 + second


binarise = Sign.apply


def two_layers(width=6):
    return nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))


@trap(X)
class StraightThrough(nn.Module):
    """Loses the backward of sign: autograd of sign itself is zero."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = two_layers(), two_layers()

    def forward(self, x):
        return self.head(Sign.apply(self.stem(x)))


@trap(X)
class GradientReversal(nn.Module):
    """Loses the change of sign: the domain head would train the features to help it."""

    def __init__(self):
        super().__init__()
        self.features, self.label, self.domain = two_layers(), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x):
        x = self.features(x)
        return self.label(x), self.domain(Reverse.apply(x, 0.5))


class Binary(nn.Module):
    def forward(self, x):
        return binarise(x)


@trap(X)
class FunctionInSubmodule(nn.Sequential):
    """Loses the backward where the function is called through an alias, deep inside."""

    def __init__(self):
        super().__init__(two_layers(), nn.Sequential(Binary()), two_layers())


@trap(X)
class FunctionOfTwo(nn.Module):
    """Loses the backward of a function with setup_context, two inputs and two outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = two_layers(), two_layers()

    def forward(self, x):
        return Scale2.apply(self.first(x), self.second(x))


@trap(X)
class FunctionInTrainingOnly(nn.Module):
    """Loses a backward that eval mode, where the model is captured first, does not show."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = two_layers(), two_layers()

    def forward(self, x):
        x = self.stem(x)
        return self.head(Sign.apply(x) if self.training else x)


@trap(X, expect="any")
class StraightThroughByDetach(nn.Module):
    """Loses the detach: rounding would give no gradient."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        x = self.fc(x)
        return x + (x.round() - x).detach()


class Counted(nn.Module):
    """Counts how often it runs, in a list that the model shares."""

    def __init__(self):
        super().__init__()
        self.fc, self.runs = two_layers(), 0

    def forward(self, x):
        self.runs += 1
        return self.fc(x)


class Checkpointed(nn.Module):
    """Loses the recomputation: the count is doubled by backward."""

    def __init__(self):
        super().__init__()
        self.body, self.head = Counted(), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


@trap(X, parts=["body.fc"])
class CheckpointReentrant(Checkpointed):
    """Loses the recomputation of a block, and with it the memory that it saves."""

    reentrant = True


@trap(X, parts=["body.fc"])
class CheckpointNonReentrant(Checkpointed):
    """Loses the recomputation of a block, and with it the memory that it saves."""

    reentrant = False


@trap(X, parts=["body"])
class CheckpointDropout(nn.Module):
    """Loses the random state that the recomputation restores."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


@trap(X, parts=["body.0.fc", "body.2.fc"])
class CheckpointSequential(nn.Module):
    """Loses checkpointing by segments."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*(Counted() for _ in range(3)))

    def forward(self, x):
        return checkpoint_sequential(self.body, 2, x, use_reentrant=False)


@trap(X)
class NoGradBlock(nn.Module):
    """Loses the border between a frozen and a trained half."""

    def __init__(self):
        super().__init__()
        self.frozen, self.head = two_layers(), nn.Linear(6, 2)

    def forward(self, x):
        with torch.no_grad():
            features = self.frozen(x)
        return self.head(features + x), features


@trap(X)
class NoGradDecorator(nn.Module):
    """Loses a decorator on forward: nothing here has a gradient."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 2)

    @torch.no_grad()
    def forward(self, x):
        return self.fc(x)


@trap(X, expect="any")
class EnableGradBlock(nn.Module):
    """Loses the gradient taken inside forward (an energy model), also when the caller asks for none."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.energy(x)
            (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy, -force


@trap(X, casts=False)
class AutocastBlock(nn.Module):
    """Loses the precision of one block."""

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            x = self.low(x)
            with torch.autocast("cpu", enabled=False):
                x = self.high(x.float())
        return x


@trap(X)
class Frozen(nn.Module):
    """Loses requires_grad=False on half of the parameters."""

    def __init__(self):
        super().__init__()
        self.base, self.head = two_layers().requires_grad_(False), nn.Linear(6, 2)
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(self.base(x))


@trap(X)
class Detached(nn.Module):
    """Loses a detach between two losses."""

    def __init__(self):
        super().__init__()
        self.fc, self.probe = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.fc(x)
        return {"main": x, "probe": self.probe(x.detach()), "stopped": x.detach()}


@trap(X, expect="any")
class HookOnActivation(nn.Module):
    """Loses a hook that forward puts on a tensor: it clips the gradient there."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.first(x)
        if x.requires_grad:
            x.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
        return self.second(x)


@trap(X, expect="any")
class RetainedActivation(nn.Module):
    """Loses retain_grad: the gradient of an activation, read after backward."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.first(x)
        if x.requires_grad:
            x.retain_grad()
        return self.second(x), x


@trap(X, expect="any")
class AsksForGradMode(nn.Module):
    """Loses the other answer to torch.is_grad_enabled()."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(x) if torch.is_grad_enabled() else 2 * self.fc(x)


@trap(X, expect="any")
class AsksForRequiresGrad(nn.Module):
    """Loses the other answer to x.requires_grad."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(x) if x.requires_grad else 2 * self.fc(x)
