"""Domains: the support S(x) over which each output position integrates. The measure μ is the counting measure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Band", "Domain", "Grid", "Keys", "Past", "Window", "reach"]


def _axes(values: tuple[object, ...]) -> str:
    return "[" + ",".join(str(value) for value in values) + "]"


@dataclass(frozen=True)
class Domain:
    """Base of all domains. Frozen: two nodes with equal domains integrate over the same support."""

    def describe(self) -> str:
        """Text after ``over`` in the IR, e.g. ``window[3,3] stride[2,2]``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Window(Domain):
    """A window of source positions p' = s·p − low + d·k, for k in 0 … size − 1 on each axis.

    Attributes:
        size: Taps per axis. An empty tuple is never valid; one entry a spatial axis.
        stride: s, per axis.
        padding: (low, high) positions added before and after each axis.
        dilation: d, per axis.
        boundary: What padded positions hold: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
        ceil_mode: Whether a last window that starts inside the source but ends outside is kept.
        transposed: Whether source and output change roles (p = s·p' − low + d·k).
        output_padding: Extra output positions at the high side, transposed windows only.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    boundary: str = "zeros"
    ceil_mode: bool = False
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.size)

    def describe(self) -> str:
        parts = [f"window{_axes(self.size)}"]
        if any(step != 1 for step in self.stride):
            parts.append(f"stride{_axes(self.stride)}")
        if any(low or high for low, high in self.padding):
            sides = tuple(low if low == high else f"{low}:{high}" for low, high in self.padding)
            parts.append(f"pad{_axes(sides)}")
        if any(step != 1 for step in self.dilation):
            parts.append(f"dilation{_axes(self.dilation)}")
        if self.boundary != "zeros":
            parts.append(self.boundary)
        if self.ceil_mode:
            parts.append("ceil")
        if self.transposed:
            parts.append("transposed")
        if any(self.output_padding):
            parts.append(f"output_pad{_axes(self.output_padding)}")
        return " ".join(parts)


@dataclass(frozen=True)
class Keys(Domain):
    """All keys of a set, or with ``causal`` the keys at or before the query (aligned at the first position)."""

    causal: bool = False

    def describe(self) -> str:
        return "past keys" if self.causal else "keys"


@dataclass(frozen=True)
class Band(Domain):
    """The keys whose index is near that of the query: from i − before to i + after.

    Attributes:
        before: None is all keys before the query.
        after: None is all keys after it; 0 is causal.
    """

    before: int | None
    after: int | None

    def __post_init__(self) -> None:
        if min(self.before or 0, self.after or 0) < 0:
            raise ValueError("a band holds the query's own index: before and after are at least 0")

    def describe(self) -> str:
        low = "" if self.before is None else f"-{self.before}"
        high = "" if self.after is None else f"+{self.after}"
        return f"band[{low}:{high}]"


def reach(domain: Domain) -> tuple[int | None, int | None]:
    """How far before and after the index of the query the keys of a domain lie; None is all the way."""
    if isinstance(domain, Band):
        return domain.before, domain.after
    if isinstance(domain, Keys):
        return None, 0 if domain.causal else None
    raise TypeError(f"{domain.describe()} is no set of keys")


@dataclass(frozen=True)
class Past(Domain):
    """All steps up to the current one along a time axis.

    Attributes:
        directions: 1 (forward) or 2 (forward and backward).
        single_step: Whether one step is taken from a given state (a recurrent cell).
    """

    directions: int = 1
    single_step: bool = False

    def describe(self) -> str:
        if self.single_step:
            return "one step"
        return "past" if self.directions == 1 else "past and future"


@dataclass(frozen=True)
class Grid(Domain):
    """The whole source grid, in ``rank`` spatial axes; the kernel says which positions weigh in."""

    rank: int

    def describe(self) -> str:
        return f"grid[{self.rank}d]"
