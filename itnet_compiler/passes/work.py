"""Cost of a graph node that is no integral: floating-point operations, and bytes read plus written.

Sizes that are symbolic count as in the example inputs. Counts are those of the plain operator: a multiply-add is two
operations, any elementwise function one (also exp, tanh …), a normalisation or softmax five an element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..ir.kernel import Work
from .dependence import tensors_of
from .forms.contraction import contraction
from .match import bind
from .operators import (
    CONTRACTIONS,
    COPIES,
    CREATIONS,
    EMBEDDINGS,
    INDEXED,
    LIKE,
    MIXING,
    NORMALISATIONS,
    RECURRENCES,
    REDUCTIONS,
    REINDEXING,
    SOFTMAXES,
    SUPPORT,
    VIEWS,
    operator_name,
)

__all__ = ["concrete", "node_work"]

# Operations an element of the result, or of the source where that is larger.
_NORMALISATION = 5
_PER_ELEMENT = {"var": 3, "std": 3, "var_mean": 3, "std_mean": 3, "norm": 2, "linalg_vector_norm": 2, "logsumexp": 3}


def concrete(shape: Iterable[Any]) -> tuple[int, ...]:
    """Sizes of the example inputs for symbolic ones; 1 for a size that depends on data."""
    return tuple(_hint(size) for size in shape)


def _hint(size: Any) -> int:
    if not isinstance(size, torch.SymInt):
        return int(size)
    hint = size.node.hint if size.node.has_hint() else None
    return int(hint) if hint is not None else 1


def node_work(node: Node) -> Work:
    """Cost of one call of ``node``. Views are free; the cost of an integral is ``kernel.work``, not asked for here."""
    if "integral" in node.meta:
        raise ValueError(f"{node.name} is an integral: its kernel knows its work")
    name = operator_name(node)
    if node.op != "call_function" or not tensors_of(node) or name in VIEWS | SUPPORT or _passes_through(node, name):
        return Work(0, 0)
    return Work(_flops(node, name), _bytes(node, name))


def _passes_through(node: Node, name: str) -> bool:
    """Whether the operator gives back its argument: a cast to the same type, dropout that does not drop."""
    if name in ("alias", "detach", "lift_fresh"):
        return True
    source = next(iter(node.all_input_nodes), None)
    if name == "to" and source is not None and tensors_of(source):
        return tensors_of(source)[0].dtype == tensors_of(node)[0].dtype and not bind(node).get("copy", False)
    if name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
        given = bind(node)
        return not given["train"] or given["p"] == 0.0
    return False


def _elements(tensors: Iterable[Tensor]) -> int:
    return sum(prod(concrete(item.shape)) for item in tensors)


def _size_in_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(prod(concrete(item.shape)) * item.element_size() for item in tensors)


def _read(node: Node) -> list[Tensor]:
    return [item for source in node.all_input_nodes for item in tensors_of(source)]


def _bytes(node: Node, name: str) -> int:
    """All arguments and results once; of a table only the rows taken."""
    written = _size_in_bytes(tensors_of(node))
    if name in LIKE | CREATIONS:
        return written
    if name in EMBEDDINGS | INDEXED:
        taken = [item for item in _read(node) if not item.is_floating_point()]
        return _size_in_bytes(taken) + 2 * written
    return _size_in_bytes(_read(node)) + written


def _flops(node: Node, name: str) -> int:
    results, sources = tensors_of(node), _read(node)
    if name in COPIES or name in REINDEXING or name in EMBEDDINGS or name in INDEXED or name in LIKE | CREATIONS:
        return 0
    if name in CONTRACTIONS:
        return _contraction_flops(node)
    if name in _LAYERS:
        return _LAYERS[name](node)
    if name in RECURRENCES:
        return _recurrence_flops(node)
    if name in NORMALISATIONS or name in SOFTMAXES:
        return _NORMALISATION * _elements(results[:1])
    if name in REDUCTIONS:
        return _PER_ELEMENT.get(name, 1) * _elements(sources)
    if name in MIXING:
        return max(_elements(results[:1]), _elements(sources[:1]))
    return _elements(results[:1])


def _contraction_flops(node: Node) -> int:
    """2 · Π of all axes; of a product of three or more operands as if formed at once."""
    read = contraction(node)
    if read is None:
        return _elements(tensors_of(node))
    sizes: dict[str, int] = {}
    for operand, labels in zip(read.operands, read.labels, strict=True):
        for label, size in zip(labels, concrete(operand.meta["val"].shape), strict=True):
            sizes[label] = max(sizes.get(label, 1), size) if size else 0
    added = _elements(tensors_of(node)) if read.addend is not None else 0
    return 2 * prod(sizes.values()) + added


# ── Layers that no rule took ─────────────────────────────────────────────────────────────────────────────────────────


def _convolution_flops(node: Node) -> int:
    """Every tap of every output once; of a transposed convolution every tap of every input."""
    given = bind(node)
    weight = concrete(given["weight"].meta["val"].shape)
    seen = tensors_of(given["input"] if "transpose" in operator_name(node) else node)
    added = _elements(tensors_of(node)) if given.get("bias") is not None else 0
    return 2 * _elements(seen) * prod(weight[1:]) + added


def _pooling_flops(node: Node) -> int:
    """One operation a tap."""
    rank = next(int(letter) for letter in operator_name(node) if letter.isdigit())
    size = bind(node)["kernel_size"]
    taps: int = size[0] ** rank if len(size) == 1 else prod(int(extent) for extent in size)
    return taps * _elements(tensors_of(node)[:1])


def _attention_flops(node: Node) -> int:
    """2 · (D + V) for each pair of positions, and 5 for its softmax."""
    given = bind(node)
    query, key, value = (concrete(given[role].meta["val"].shape) for role in ("query", "key", "value"))
    pairs = prod(query[:-1]) * key[-2]
    return pairs * (2 * (query[-1] + value[-1]) + _NORMALISATION)


def _recurrence_flops(node: Node) -> int:
    """Every weight matrix once a step and sample; the pointwise gates are not counted."""
    given = bind(node)
    weights = given.get("params") or [given[role] for role in ("w_ih", "w_hh") if role in given]
    matrices = [one.meta["val"] for one in weights if isinstance(one, Node) and one.meta["val"].dim() == 2]
    source = given.get("input", given.get("data"))
    sizes = concrete(source.meta["val"].shape)
    return 2 * prod(sizes[:-1]) * _elements(matrices)


def _interpolation_flops(taps: int) -> Callable[[Node], int]:
    return lambda node: 2 * taps * _elements(tensors_of(node))


_LAYERS: dict[str, Callable[[Node], int]] = {
    **{f"conv{n}d": _convolution_flops for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolution_flops for n in (1, 2, 3)},
    **{f"{kind}_pool{n}d": _pooling_flops for kind in ("avg", "max") for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": _pooling_flops for n in (1, 2, 3)},
    **{f"upsample_nearest{n}d": _interpolation_flops(0) for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": _interpolation_flops(0) for n in (1, 2, 3)},
    "upsample_linear1d": _interpolation_flops(2),
    "upsample_bilinear2d": _interpolation_flops(4),
    "upsample_trilinear3d": _interpolation_flops(8),
    "upsample_bicubic2d": _interpolation_flops(16),
    "scaled_dot_product_attention": _attention_flops,
}
