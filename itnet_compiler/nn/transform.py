"""The integral transform as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..ir.domain import Domain
from ..ir.kernel import Spec
from ..ir.pairwise import Pairwise
from ..lowering.base import find_lowering
from ..lowering.tiled import flattened, integrate
from .function import KernelFunction, domain_of, padding_as_mask
from .kernels import Ends, FunctionKernel, MlpKernel
from .norm import HeadNorm
from .spectral import Spectral

__all__ = ["IntegralTransform", "grid"]

_MEASURES = ("uniform", "counting")


class IntegralTransform(nn.Module):
    """y(x) = ∫ K(x, x', f(x), f(x'))·v(f(x')) dμ(x'), with a kernel that is learned and never stored:

        v_j = W_v·f_j,   z_i = Σ_j w_j·κ_h(p_i, p'_j, f_i, f'_j)·v_{j,h},   y_i = W_o·norm(z_i) + b

    in heads h, for queries i and sources j. The weights w are those of the measure (1/M each, unless told otherwise);
    with ``normalise``, κ is a score and its softmax over the sources is the weight. The kernel is a small network of
    both positions and both features (the integral transform of ITNet, arXiv 2606.19538), or a function.

    Whatever the number of positions, the output starts with variance 1 for inputs of variance 1: κ does, and with
    ``head_norm`` each head is divided by the root of its mean square over channels, which is a map of each position by
    itself and takes out how much the sum grows or shrinks with the number of sources. To what power is learned
    (``HeadNorm``), since a transform that is linear in its source must not be divided.

    Args:
        dim: Features of queries, and of the output.
        heads: H; divides ``dim``.
        kernel: ``"mlp"``; ``"softmax+mlp"``, attention whose score has the network added to it, with a gate that starts
            at 0; ``"spectral+local"``, the network within the window and beside it a stationary kernel of any reach
            applied by FFT (``nn.spectral``), for uniform grids in O(N log N); or a kernel function (``itnet.kernel``)
            of H numbers.
        source_dim: Features of sources; ``dim`` by default.
        axes: Numbers in a position.
        normalise: Whether the weights are a softmax; always so with ``"softmax+mlp"``.
        causal: Only sources up to the query's own index take part.
        window: Only sources up to so many indices away take part, or (before, after). 8 with ``"spectral+local"``.
        measure: ``"uniform"`` (1/M) or ``"counting"`` (1), where a call gives no weights.
        head_norm: Divide each head by a learned power of the root of its mean square, 1 at first.
        bias: Whether W_o has a bias.
        params: What the kernel function learns: a module or named tensors.
        method: ``"tiled"``, or ``"reference"``: the dense definition, with memory N·M and second derivatives.
        **network: Of ``MlpKernel``: hidden, depth, fourier, absolute, frequency, period, norm; ``features=False``
            leaves the features out of the kernel, which is then one of positions alone.

    Raises:
        InputError: where the arguments do not fit each other.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        kernel: str | KernelFunction = "mlp",
        *,
        source_dim: int | None = None,
        axes: int = 1,
        normalise: bool = False,
        causal: bool = False,
        window: int | tuple[int | None, int | None] | None = None,
        measure: str = "uniform",
        head_norm: bool = True,
        bias: bool = True,
        params: Any = None,
        method: str = "tiled",
        features: bool = True,
        **network: Any,
    ) -> None:
        super().__init__()
        if dim < 1 or heads < 1:
            raise InputError(f"{dim} features in {heads} heads", remedy="give at least one of each")
        if dim % heads:
            raise InputError(f"{heads} heads do not divide {dim} features", remedy="choose another dim or heads")
        if measure not in _MEASURES:
            raise InputError(f"there is no measure {measure!r}", remedy=f"choose one of {', '.join(_MEASURES)}")
        source_dim = dim if source_dim is None else source_dim
        self.dim, self.query_dim, self.source_dim, self.heads, self.axes = dim, dim, source_dim, heads, axes
        self.measure, self.method = measure, method
        if kernel == "spectral+local" and window is None:
            window = 8
        self.domain: Domain = domain_of(causal, window)
        self.value = nn.Linear(source_dim, dim, bias=False)
        self.kernel: MlpKernel | FunctionKernel
        if isinstance(kernel, KernelFunction):
            shapes = ((axes,), (axes,), (dim,), (source_dim,))
            self.kernel = FunctionKernel(kernel, shapes, params, normalise=normalise)
        elif kernel in ("mlp", "softmax+mlp", "spectral+local"):
            relaxed = kernel == "softmax+mlp"
            widths = (dim, source_dim) if features or relaxed else (0, 0)
            base = dim // heads if relaxed else 0
            options = network | {"axes": axes, "normalise": normalise or relaxed, "base": base}
            self.kernel = MlpKernel(heads, widths, **options)
        else:
            raise InputError(
                f"there is no kernel {kernel!r}",
                remedy='choose "mlp", "softmax+mlp", "spectral+local" or a function made by itnet.kernel',
            )
        self.spectral = None
        if kernel == "spectral+local":
            if axes != 1 or source_dim != dim:
                raise InputError("spectral+local is for one axis and one set of positions", remedy='kernel="mlp"')
            self.spectral = Spectral(dim, heads, causal=causal, **network)
        self.norm = HeadNorm(heads) if head_norm else None
        self.out: nn.Module = nn.Linear(dim, dim, bias=bias)
        nn.init.normal_(self.value.weight, std=source_dim**-0.5)
        nn.init.normal_(self.out.weight, std=dim**-0.5)
        if bias:
            nn.init.zeros_(self.out.bias)
        self._program = self._prepared()

    def forward(
        self,
        x: Tensor,
        source: Tensor | None = None,
        positions: Tensor | None = None,
        source_positions: Tensor | None = None,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The transform of ``source`` at the positions of ``x``.

        Args:
            x: f at the queries, (B, N, dim).
            source: f' at the sources, (B, M, source_dim); ``x`` by default.
            positions: (B or 1, N, axes); a uniform grid on [0, 1] by default, where axes is 1.
            source_positions: (B or 1, M, axes); those of the queries where source is x, else a grid of their own.
            weights: w, (B or 1, M): quadrature weights, 0 for padding. Not negative where weights are normalised.
            mask: bool (B, M) for padding, or (B or 1, N or 1, M): True where a source takes part.

        Returns:
            y, (B, N, dim). A query without sources gets the bias alone.
        """
        mask = padding_as_mask(mask)
        same = source is None
        if self.spectral is not None and not (same and positions is None and source_positions is None):
            raise InputError("spectral+local takes a uniform grid of its own", remedy="leave source and positions out")
        source = x if source is None else source
        if x.dim() != 3 or source.dim() != 3:
            name, shape = ("x", x.shape) if x.dim() != 3 else ("source", source.shape)
            raise InputError(f"{name} has shape {tuple(shape)}", remedy="give (batch, positions, features)")
        positions = self._positions(positions, x)
        if source_positions is None:
            source_positions = positions if same else self._positions(None, source)
        self._check(x, source, positions, source_positions, weights, mask)
        ends = (positions, source_positions, x, source)
        value = self.value(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        weights = self._weights(weights, mask, source)
        operands = self.kernel.operands(ends)
        if self.method == "reference":
            extra = {} if weights is None else {"measure": weights}
            found = self._kernel().evaluate(self.domain, **operands, **extra, value=value, mask=mask, like_queries=x)
        else:
            text, names = self._program
            flat = flattened(operands)
            found = integrate(
                text,
                [flat[name] for name in names],
                value,
                measure=weights,
                mask=mask,
                like_queries=x,
                normalise=self._kernel().normalise,
                domain=self.domain,
            )
        heads = self._normed(found)
        if self.spectral is not None:
            spectral = self._spectral(value, weights, mask, positions)
            heads = self.spectral.mixed(x, self._normed(spectral), heads)
        return self.out(heads.flatten(2))

    def _check(
        self,
        x: Tensor,
        source: Tensor,
        positions: Tensor,
        source_positions: Tensor,
        weights: Tensor | None,
        mask: Tensor | None,
    ) -> None:
        """Raise ``InputError`` where a tensor has another shape than the layer takes."""
        batch, queries, sources = x.shape[0], x.shape[1], source.shape[1]
        wanted: list[tuple[str, Tensor | None, tuple[tuple[int, ...], ...]]] = [
            ("x", x, ((batch,), (queries,), (self.query_dim,))),
            ("source", source, ((batch,), (sources,), (self.source_dim,))),
            ("positions", positions, ((1, batch), (queries,), (self.axes,))),
            ("source_positions", source_positions, ((1, batch), (sources,), (self.axes,))),
            ("weights", weights, ((1, batch), (sources,))),
            ("mask", mask, ((1, batch), (1, queries), (sources,))),
        ]
        for name, tensor, sizes in wanted:
            if tensor is None:
                continue
            fits = tensor.dim() == len(sizes)
            if not fits or any(n not in known for n, known in zip(tensor.shape, sizes, strict=True)):
                said = ", ".join(" or ".join(map(str, dict.fromkeys(known))) for known in sizes)
                raise InputError(f"{name} has shape {tuple(tensor.shape)}", remedy=f"give ({said})")

    def _normed(self, heads: Tensor) -> Tensor:
        """(B, N, H, V) from (B, H, N, V), each head divided by the root of its mean square."""
        heads = heads.transpose(1, 2)
        return heads if self.norm is None else self.norm(heads)

    def _spectral(self, value: Tensor, weights: Tensor | None, mask: Tensor | None, positions: Tensor) -> Tensor:
        """The global half of ``spectral+local``."""
        assert self.spectral is not None
        if mask is not None and mask.shape[1] != 1:
            raise InputError("spectral+local takes a mask of padding only", remedy="give mask= as (B, N)")
        if mask is not None:
            value = value.masked_fill(~mask.unsqueeze(-1), 0.0)
        if weights is not None:
            value = value * weights[:, None, :, None].to(value.dtype)
        return self.spectral(value, positions, dense=self.method == "reference")

    @staticmethod
    def from_conv(layer: nn.Conv1d) -> IntegralTransform:
        """The transform that computes a convolution: ``construct.from_conv``."""
        from .construct import from_conv

        return from_conv(layer)

    @staticmethod
    def from_attention(layer: nn.MultiheadAttention, *, causal: bool = False) -> IntegralTransform:
        """The transform that computes self-attention: ``construct.from_attention``."""
        from .construct import from_attention

        return from_attention(layer, causal=causal)

    @staticmethod
    def from_recurrence(decay: Tensor, gain: Tensor | None = None) -> IntegralTransform:
        """The transform that computes h_t = a·h_{t−1} + b·x_t: ``construct.from_recurrence``."""
        from .construct import from_recurrence

        return from_recurrence(decay, gain)

    @property
    def spec(self) -> Spec:
        """The layer's integral as an IR node's specification."""
        kernel, names = self.kernel.program(self._example())
        return Spec(kernel, self.domain, "integral transform", ("value", *names))

    def program(self) -> str:
        """What is computed once, of each query, of each source and of each pair, in words."""
        return find_lowering("tiled").build(self.spec).source

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.heads}, over {self.domain.describe()}, measure={self.measure}"

    def _kernel(self) -> Any:
        return self.kernel.kernel if isinstance(self.kernel, MlpKernel) else self._pairwise

    def _prepared(self) -> tuple[str, list[str]]:
        """Text of the pair program and the names of its inputs; made now, so that compilers need not look."""
        kernel, names = self.kernel.program(self._example())
        assert isinstance(kernel, Pairwise)
        shape = kernel.program.values[kernel.program.outputs[0]].shape
        if shape not in ((), (self.heads,)):
            raise InputError(f"the kernel gives {shape} numbers for {self.heads} heads", remedy="give heads= to match")
        self._pairwise = kernel
        return str(kernel.program), names

    def _example(self) -> Ends:
        """Ends of one query and one source."""
        like = self.value.weight
        query, source = like.new_zeros(1, 1, self.dim), like.new_zeros(1, 1, self.source_dim)
        place = like.new_zeros(1, 1, self.axes)
        return place, place, query, source

    def _positions(self, positions: Tensor | None, like: Tensor) -> Tensor:
        if positions is not None:
            return positions
        if self.axes != 1:
            raise InputError(f"positions of {self.axes} axes have no default", remedy="give positions=, e.g. nn.grid")
        return grid((like.shape[1],), like)

    def _weights(self, weights: Tensor | None, mask: Tensor | None, source: Tensor) -> Tensor | None:
        """The measure; one that is the same for all sources is left out where weights are normalised."""
        if weights is not None or self.measure == "counting" or self._kernel().normalise:
            return weights
        if mask is not None and mask.shape[1] == 1:
            count = mask[:, 0].sum(1, keepdim=True).clamp_min(1)
            return (1.0 / count).to(source.dtype).expand(-1, source.shape[1])
        return source.new_full((1, source.shape[1]), 1.0 / max(1, source.shape[1]))


def grid(sizes: tuple[int, ...], like: Tensor | None = None) -> Tensor:
    """Positions of a uniform grid on [0, 1] along each axis, (1, product of sizes, axes), the last axis fastest.

    Args:
        sizes: Positions along each axis; a single one is at 0.
        like: Tensor whose device to take, and whose dtype if it is float64; else positions are float32.
    """
    dtype = torch.float64 if like is not None and like.dtype == torch.float64 else torch.float32
    device = None if like is None else like.device
    axes = [torch.arange(size, dtype=dtype, device=device) / max(1, size - 1) for size in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2).unsqueeze(0)
