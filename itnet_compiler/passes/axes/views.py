"""How re-indexing operators carry axis roles: views, permutes, joins and parts of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..match import bind
from ..operators import operator_name
from .algebra import AxisRole, axis, broadcast, join, regroup, resized
from .rules import Axes, Lookup, dims_of, on, resize_all, shape, source_of, unknown


@on("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten", "ravel", "_reshape_alias")
def view(node: Node, look: Lookup) -> Axes:
    """Factors of the axes, grouped anew."""
    return regroup(look(source_of(node)), shape(node))


@on("atleast_1d", "atleast_2d", "atleast_3d")
def at_least(node: Node, look: Lookup) -> Axes:
    """Axes of extent 1 added."""
    return regroup(look(source_of(node)), shape(node)) if isinstance(node.meta["val"], Tensor) else unknown(node)


@on("unsqueeze")
def unsqueeze(node: Node, look: Lookup) -> Axes:
    """An axis of extent 1, of which nothing is known."""
    source = list(look(source_of(node)))
    source.insert(dims_of(bind(node)["dim"], len(source) + 1)[0], axis(1))
    return source


@on("squeeze")
def squeeze(node: Node, look: Lookup) -> Axes:
    """Axes of extent 1 go."""
    source, given = look(source_of(node)), bind(node)
    dims = dims_of(given.get("dim"), len(source))
    sizes = source_of(node).meta["val"].shape
    return [one for place, one in enumerate(source) if place not in dims or sizes[place] != 1]


@on("permute", "numpy_T", "T", "t", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "mT", "mH", "adjoint")
@on("H", "matrix_H")
def permute(node: Node, look: Lookup) -> Axes:
    """The same axes in another order."""
    source, given, name = look(source_of(node)), bind(node), operator_name(node)
    order = list(range(len(source)))
    if name == "permute":
        order = dims_of(given["dims"], len(source))
    elif name in ("movedim", "moveaxis"):
        order = _moved(dims_of(given["source"], len(source)), dims_of(given["destination"], len(source)), len(source))
    elif name in ("transpose", "swapaxes", "swapdims"):
        first, second = dims_of(list(given.values())[1:3], len(source))
        order[first], order[second] = order[second], order[first]
    elif name in ("numpy_T", "T", "t"):
        order.reverse()
    else:
        order[-2:] = order[-1], order[-2]
    return [source[place] for place in order]


def _moved(sources: Sequence[int], targets: Sequence[int], rank: int) -> list[int]:
    rest = iter(place for place in range(rank) if place not in sources)
    taken = dict(zip(targets, sources, strict=True))
    return [taken[place] if place in taken else next(rest) for place in range(rank)]


@on("expand", "expand_as", "broadcast_to")
def expand(node: Node, look: Lookup) -> Axes:
    """Axes of extent 1 become wider, and others are added in front."""
    return resize_all(look(source_of(node)), shape(node))


@on("cat", "concat", "concatenate", "hstack", "vstack", "dstack", "column_stack", "row_stack")
def concatenate(node: Node, look: Lookup) -> Axes:
    """The joined axis has the role that its parts agree on."""
    given, sizes, name = bind(node), shape(node), operator_name(node)
    parts = [look(part) for part in given["tensors"]]
    parts = [axes for axes in parts if len(axes) == len(sizes)]  # torch.cat skips empty vectors
    if name in ("hstack", "vstack", "dstack", "column_stack", "row_stack"):
        along = {"hstack": min(1, len(sizes) - 1), "dstack": 2}.get(name, 1 if name == "column_stack" else 0)
    else:
        along = dims_of(given["dim"], len(sizes))[0]
    if not parts:
        return unknown(node)
    result = broadcast(parts, sizes)
    found = parts[0][along]
    for other in parts[1:]:
        found = join(found, other[along], sizes[along])
    result[along] = resized(found, sizes[along])
    return result


@on("stack")
def stack(node: Node, look: Lookup) -> Axes:
    """What the new axis counts is not known: channels, time steps, alternatives."""
    given, sizes = bind(node), shape(node)
    along = dims_of(given["dim"], len(sizes))[0]
    inner = sizes[:along] + sizes[along + 1 :]
    result = broadcast([look(part) for part in given["tensors"]], inner)
    result.insert(along, axis(sizes[along]))
    return result


@on("split", "split_with_sizes", "chunk", "tensor_split", "hsplit", "vsplit", "unsafe_chunk", "unsafe_split")
@on("unsafe_split_with_sizes", "split_copy")
def split(node: Node, look: Lookup) -> Axes:
    """Parts have the axes of the whole."""
    source = look(source_of(node))
    return [resize_all(source, list(part.shape)) for part in node.meta["val"]]


@on("unbind")
def unbind(node: Node, look: Lookup) -> Axes:
    """One axis goes, in every part."""
    source = look(source_of(node))
    along = dims_of(bind(node)["dim"], len(source))[0]
    return [source[:along] + source[along + 1 :] for _ in node.meta["val"]]


@on("select")
def select(node: Node, look: Lookup) -> Axes:
    """One axis goes."""
    source = look(source_of(node))
    along = dims_of(bind(node)["dim"], len(source))[0]
    return source[:along] + source[along + 1 :]


@on("getitem")
def getitem(node: Node, look: Lookup) -> Axes:
    """One of several results."""
    source, index = node.args
    results = look.results(source) if isinstance(source, Node) else []
    if isinstance(index, int) and index < len(results):
        return results[index]
    return unknown(node)


@on("unfold")
def unfold(node: Node, look: Lookup) -> Axes:
    """Windows of an axis; the new last axis counts within the window."""
    source, given, sizes = look(source_of(node)), bind(node), shape(node)
    along = dims_of(given["dimension"], len(source))[0]
    return [*resize_all(source, sizes[:-1]), resized(source[along], sizes[-1])]


@on("diagonal")
def diagonal(node: Node, look: Lookup) -> Axes:
    """Two axes become one, at the end."""
    source, given, sizes = look(source_of(node)), bind(node), shape(node)
    gone = dims_of([given["dim1"], given["dim2"]], len(source))
    kept = [one for place, one in enumerate(source) if place not in gone]
    return [*kept, resized(join(source[gone[0]], source[gone[1]], sizes[-1]), sizes[-1])]


@on("meshgrid")
def meshgrid(node: Node, look: Lookup) -> Axes:
    """Every result has one axis of each vector."""
    vectors = [(look(one) or [axis(1)])[0] for one in bind(node)["tensors"]]
    if bind(node).get("indexing") == "xy" and len(vectors) > 1:
        vectors[0], vectors[1] = vectors[1], vectors[0]
    return [list(vectors) for _ in node.meta["val"]]


@on("view_as_real")
def view_as_real(node: Node, look: Lookup) -> Axes:
    """Real and imaginary parts are features."""
    return [*look(source_of(node)), axis(2, AxisRole.FEATURE)]


@on("view_as_complex")
def view_as_complex(node: Node, look: Lookup) -> Axes:
    """The axis of real and imaginary parts goes."""
    return look(source_of(node))[:-1]


@on("index", "_unsafe_index")
def index(node: Node, look: Lookup) -> Axes:
    """Indexed axes become the axes of the indices, in place where they are adjacent, in front otherwise."""
    given, sizes = bind(node), shape(node)
    source, indices = look(given["self"]), list(given["indices"])
    if any(isinstance(one, Node) and one.meta["val"].dtype in (torch.bool, torch.uint8) for one in indices):
        return unknown(node)
    places = [place for place, one in enumerate(indices) if one is not None]
    if not places:
        return source
    adjacent = places == list(range(places[0], places[-1] + 1))
    start = places[0] if adjacent else 0
    count = len(sizes) - (len(source) - len(places))
    picked = broadcast([look(one) for one in indices if one is not None], sizes[start : start + count])
    if len(places) == 1 and count == 1 and picked[0].role is AxisRole.UNKNOWN:
        picked = [resized(source[places[0]], sizes[start])]  # a choice of positions is an axis of positions
    kept = [one for place, one in enumerate(source) if place not in places]
    return [*kept[:start], *picked, *kept[start:]]


def _fourier(node: Node, look: Lookup) -> Axes:
    return resize_all(look(source_of(node)), shape(node))


_KINDS = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn")
on(*(f"fft_{kind}" for kind in (*_KINDS, "irfftn", "fftshift", "ifftshift")))(_fourier)


@on("transformers.grouped_mm_fallback", "_grouped_mm")
def grouped_product(node: Node, look: Lookup) -> Axes:
    """Rows keep their meaning, columns are features."""
    source: list[Any] = look(source_of(node))
    return [*source[:-1], axis(shape(node)[-1], AxisRole.FEATURE)]
