"""Rule ``fourier``: Fourier transforms along position axes."""

from __future__ import annotations

from torch.fx import Node

from ...ir.domain import Grid
from ...ir.fourier import TRANSFORMS, Fourier
from ...ir.kernel import Spec
from ..axes import AxisRole, roles_of
from ..match import Match, Proposal, bind, op_name, propose, rank, rule

__all__ = ["fourier", "read_transform"]

_NAMES = tuple(f"aten.fft_{name}{count}.default" for name in TRANSFORMS for count in ("", "2", "n"))


def read_transform(node: Node, match: Match) -> tuple[str, tuple[int, ...], str, list[object] | None]:
    """Which transform a call makes: its name without a count of axes, axes, norm, and lengths where they are given."""
    match.require(op_name(node) in _NAMES, f"{op_name(node)} is no Fourier transform that is known", node)
    given = bind(node)
    name = op_name(node).split(".")[1].removeprefix("fft_").removesuffix("2").removesuffix("n")
    source = given["self"]
    lengths, axes = given.get("n", given.get("s")), given.get("dim")
    if lengths is not None and not isinstance(lengths, (list, tuple)):
        lengths = [lengths]
    if axes is None:
        count = rank(source) if lengths is None else len(lengths)
        axes = tuple(range(-count, 0))
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    match.require(lengths is None or -1 not in lengths, "a length of −1", node)
    return name, axes, given.get("norm") or "backward", None if lengths is None else list(lengths)


@rule("fourier", *_NAMES)
def fourier(node: Node, match: Match) -> Proposal:
    """y = F x, with F the matrix of the discrete Fourier transform, along one position axis at least."""
    name, axes, norm, lengths = read_transform(node, match)
    source = bind(node)["self"]
    roles = {roles_of(source)[axis] for axis in axes}
    match.require(AxisRole.POSITION in roles, "no axis that is transformed is proven to hold positions")
    operands = {"input": source} | ({} if lengths is None else {"lengths": lengths})
    return propose(
        Spec(Fourier(name, axes, norm), Grid(len(axes)), "fourier transform", tuple(operands)), operands, node
    )
