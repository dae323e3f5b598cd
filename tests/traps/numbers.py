"""Traps for numbers: complex and integer dtypes, promotion, layouts, sizes of 0 and 1, infinities."""

import torch
from torch import nn
from torch.nn import functional as F

from .table import call, trap

G = torch.Generator().manual_seed(6)
X = torch.randn(4, 6, generator=G)
IMAGE = torch.randn(2, 4, 6, 6, generator=G)


def fc():
    return nn.Linear(6, 6)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = fc()


@trap(X, casts=False)
class Fourier(Layer):
    """Loses the imaginary half on the way."""

    def forward(self, x):
        spectrum = torch.fft.rfft(self.fc(x))
        return torch.fft.irfft(spectrum * spectrum.abs(), n=6), spectrum


@trap(torch.randn(2, 3, 6, generator=G), casts=False)
class ComplexRotary(Layer):
    """Loses view_as_complex: rotary positions as Llama first had them."""

    def __init__(self):
        super().__init__()
        angles = torch.outer(torch.arange(3.0), torch.tensor([1.0, 0.1, 0.01]))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, x):
        pairs = torch.view_as_complex(self.fc(x).unflatten(-1, (3, 2)))
        return torch.view_as_real(pairs * self.turns).flatten(-2)


@trap(X, casts=False)
class ComplexParameters(nn.Module):
    """Loses complex parameters, their gradients and a conjugate view."""

    def __init__(self):
        super().__init__()
        self.rates, self.out = nn.Parameter(torch.randn(6, dtype=torch.cfloat)), nn.Linear(6, 6, dtype=torch.cfloat)

    def forward(self, x):
        y = self.out(x * self.rates)
        return y, y.conj(), y.real, y.imag, y.abs()


@trap(torch.randn(2, 3, 8, dtype=torch.cfloat, generator=G), casts=False)
class ComplexConvolution(nn.Module):
    """Loses a convolution of complex numbers, which is no kernel of the library's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, dtype=torch.cfloat)

    def forward(self, x):
        return self.conv(x)


def last(image):
    return image.to(memory_format=torch.channels_last)


@trap(last(IMAGE), then=[call(last(IMAGE)), call(IMAGE)])
class ChannelsLast(nn.Module):
    """Loses the memory format of outputs, which views after it depend on."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x, self.pool(x), F.interpolate(x, scale_factor=2), F.adaptive_avg_pool2d(x, 2)


@trap(IMAGE, make=lambda cls: cls().to(memory_format=torch.channels_last))
class ChannelsLastModel(ChannelsLast):
    """Loses that weights are channels-last: outputs are too, whatever the input."""


@trap(last(IMAGE), then=[call(last(IMAGE)), call(IMAGE)], expect="any")
class AsksForLayout(nn.Module):
    """Loses the other answer to is_contiguous."""

    def forward(self, x):
        return x * 2 if x.is_contiguous() else x.reshape(-1) + 1


WIDE = torch.randn(6, 8, generator=G)
VIEWS = [WIDE.t()[:4, :], WIDE.t()[::2, :], WIDE[0, :6].expand(4, 6), WIDE[:, :6], WIDE[1:5, 2:]]


@trap(X, then=[call(view) for view in VIEWS], expect="any")
class Strided(Layer):
    """Loses strides: outputs are views of inputs that are transposed, strided or expanded."""

    def forward(self, x):
        return self.fc(x), x * 2, x.reshape(-1), x.transpose(0, 1), F.softmax(x, 0)


@trap(X.t().contiguous().t())
class TransposedExample(Layer):
    """Loses that the example was transposed: what contiguous inputs give is laid out otherwise."""

    def forward(self, x):
        return x.sigmoid(), self.fc(x), torch.empty_like(x).fill_(1)


SIZES = [call(X[:n]) for n in (0, 1, 4)]


@trap(X, then=SIZES)
class EmptyBatch(nn.Sequential):
    """Loses a batch of nothing."""

    def __init__(self):
        super().__init__(fc(), nn.ReLU(), nn.LayerNorm(6), fc())


@trap(SIZES[0], then=[call(X), *SIZES])
class EmptyExample(nn.Sequential):
    """Loses everything but nothing, if the example is empty."""

    def __init__(self):
        super().__init__(fc(), nn.Tanh(), fc())


@trap(torch.randn(2, 5, 6, generator=G), then=[call(torch.randn(2, n, 6, generator=G)) for n in (0, 1, 3)])
class EmptySequence(Layer):
    """Loses a sequence of length 0 and of length 1."""

    def forward(self, x):
        return self.fc(x), F.scaled_dot_product_attention(x, x, x), x.sum(1)


@trap(torch.tensor(2.0))
class Scalar(nn.Module):
    """Loses that input and parameter have no axes."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return x * self.rate, (x + self.rate).exp()


@trap(torch.randint(0, 9, (3, 5), generator=G), casts=False)
class Integers(nn.Module):
    """Loses integer arithmetic: division, shifts, comparisons, an embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6, padding_idx=0)

    def forward(self, x):
        return self.embed(x), x // 2, x / 2, x << 1, x % 3, (x > 4) & (x < 7), ~x


@trap(call(X > 0, X.to(torch.uint8)), casts=False)
class Booleans(Layer):
    """Loses bool and uint8 inputs, and what sums of them are."""

    def forward(self, mask, small):
        return self.fc(mask.float()), mask.sum(), small.sum(), small + small, mask ^ True, torch.where(mask, 1, 0)


@trap(X.double(), casts=False, make=lambda cls: cls().double())
class Doubles(Layer):
    """Loses promotion: Python numbers, 0-d tensors and float32 tensors meet float64."""

    def forward(self, x):
        half = torch.tensor(0.5)
        return self.fc(x) * half, x.float() + x, x.sum().float() * x.half(), x + torch.arange(6), 2**x


@trap(call(X, X.double()), then=[call(X, X.double()), call(X, X.half()), call(X, X.long()), call(X, X)], casts=False)
class Promotes(nn.Module):
    """Loses the dtype of another call with other dtypes."""

    def forward(self, x, y):
        return x + y, torch.cat([x, y]), x * y.sum()


@trap(call(torch.tensor([[1.0, torch.nan, torch.inf, -torch.inf, -0.0, 1e-45]])))
class Extremes(Layer):
    """Loses NaN, infinities, −0 and denormals."""

    def forward(self, x):
        return x.softmax(-1), x.nan_to_num(), x.max(), 1 / x, x.sort(), self.fc(x), F.hardtanh(x), x.relu()


@trap(X, casts=False)
class MixedPrecision(nn.Module):
    """Loses casts in the middle: norms in float32, the rest in bfloat16."""

    def __init__(self):
        super().__init__()
        self.low, self.norm = fc().bfloat16(), nn.LayerNorm(6)

    def forward(self, x):
        x = self.low(x.bfloat16())
        return self.norm(x.float()).to(x.dtype), self.low.weight.dtype is x.dtype


@trap(X, expect="any")
class DefaultDtype(Layer):
    """Loses the default dtype, which new tensors take."""

    def forward(self, x):
        return self.fc(x) + torch.ones(6), torch.arange(3.0), torch.tensor(1.5)


@trap(torch.randn(2, 3, 8, generator=G))
class OddSizes(nn.Module):
    """Loses a ceil or a floor where sizes are not multiples of the stride."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, stride=3, padding=2, padding_mode="circular")
        self.up = nn.ConvTranspose1d(4, 2, 4, stride=3, output_padding=1)

    def forward(self, x):
        x = self.conv(x)
        return self.up(x), F.avg_pool1d(x, 2, ceil_mode=True, count_include_pad=False), F.pad(x, (1, 2), "replicate")


@trap(call(X, torch.eye(6).to_sparse()), casts=False, grad=False, expect="any")
class SparseInput(Layer):
    """Loses a sparse argument, which has no strides."""

    def forward(self, x, matrix):
        return torch.sparse.mm(matrix, self.fc(x).t())
