"""The normal form of a re-rolled loop over a matrix: outer products, their scan, and a product with queries.

    S = scan(decay, k ⊗ v, initial),    y = Σ_c q·S

Followed backwards in labels from the product with the queries, as attention is (see ``attention``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Node

from ...ir.semiseparable import Diagonal
from ..match import Match, bind, is_made, shape_of, value_of
from ..operators import operator_name
from .attention_steps import LONGEST, Chains, Leaf
from .labels import Axes, Tracer
from .products import is_tensor, read_product

__all__ = ["Form", "find"]

_ZEROS = frozenset("zeros new_zeros zeros_like".split())
_FULL = frozenset("full new_full full_like".split())


@dataclass
class Form:
    """A recurrence of a matrix, in labels that ``tracer`` resolves; see ``ir.ArrangedState``.

    Attributes:
        region: The nodes that compute it.
        time: The label of the steps.
        channels: Labels that the product with the queries sums over.
        leaves: Operands by role: query, key, value, and rate, decay, initial where there are such.
        output: Axes of the result.
        last: The node of the last state, where it is used.
        state: Axes of the state.
        scale: A number.
        constant: The decay, where it is a number and not 1.
    """

    tracer: Tracer
    time: str
    channels: tuple[str, ...]
    leaves: dict[str, Leaf]
    output: Axes
    state: Axes
    region: list[Node] = field(default_factory=list)
    last: Node | None = None
    scale: float = 1.0
    constant: float | None = None


def find(node: Node, match: Match) -> Form:
    """The recurrence whose product with the queries is ``node``.

    Raises:
        Refusal: with the reason, where there is none.
    """
    return _Finder(match).run(node)


class _Finder(Chains):
    constant: float | None = None

    def run(self, node: Node) -> Form:
        sides, output = self._read(node), self.tracer.fresh(shape_of(node))
        product = self._product(node, "no product of two tensors")
        self.match.require(product.addend is None, "something is added to the product", node)
        factors = self._factors(product, output)
        channels = self._summed(product, factors)
        self.match.require(channels, "nothing is summed over the states", node)
        place = sides
        states, axes = self._through_views(*factors[place])
        call = states.args[0]
        assert isinstance(call, Node)
        last = self._scan(states, call)
        kernel = call.meta["integral"].kernel
        self.match.require(axes[0] and len(axes[0]) == 1, "the steps are divided", states)
        self.match.require(axes[0][0] not in channels, "the sum runs over the steps", states)
        rest = axes[1:]
        leaves = self._outer_product(call.kwargs["input"], axes, channels)
        if (decay := self._decay(call.kwargs["decay"], rest if kernel.constant else axes)) is not None:
            leaves["decay"] = decay
        if (initial := self._initial(call.kwargs.get("initial"), rest)) is not None:
            leaves["initial"] = initial
        leaves = {"query": self._operand(*factors[1 - place]), **leaves}  # what scales it scales the initial state too
        scale = 1.0
        for step, _ in self.found.steps:
            scale *= float(step.number or 0.0)
        time = self.tracer.flat([axes[0]])
        self.match.require(len(time) == 1, "the steps are divided", states)
        form = Form(self.tracer, time[0], self.tracer.flat([channels]), leaves, output, rest)
        form.region, form.last, form.scale = sorted(set(self.found.region)), last, scale
        form.constant = self.constant
        return form

    def _read(self, node: Node) -> int:
        """Which factor is made of the states of a scan; nothing is taken."""
        read = read_product(node)
        operands = read[0].operands if read is not None else ()
        self.match.require(len(operands) == 2, "no product of two tensors", node)
        for place, operand in enumerate(operands):
            for _ in range(LONGEST):
                if operand.op != "call_function" or operator_name(operand) == "getitem":
                    break
                step = self.tracer.back(operand, self.tracer.fresh(shape_of(operand)))
                if step is None:
                    break
                operand = step[0]
            if _is_states(operand):
                return place
        return self.match.refuse("neither factor holds the states of a linear recurrence", node)

    def _scan(self, states: Node, call: Node) -> Node | None:
        """Take the scan; the node of its last state where that is used."""
        self.match.require(not call.meta["integral"].kernel.reverse, "the steps run backwards", call)
        last = None
        for user in call.users:
            if user is states:
                continue
            self.match.require(
                operator_name(user) == "getitem" and user.args[1] == 1, "the states are used twice", user
            )
            self.match.require(last is None, "the last state is used twice", user)
            last = user
            self._take(user)
        self._take(states)
        self._take(call)
        return last if last is not None and last.users else None

    def _outer_product(self, node: object, axes: Axes, channels: tuple[str, ...]) -> dict[str, Leaf]:
        """Key, value and rate of scale·rate·k ⊗ v."""
        rate: Leaf | None = None
        for _ in range(LONGEST):
            self.match.require(is_tensor(node), "a number is added to the state at each step")
            assert isinstance(node, Node)
            node, axes = self._through_views(node, axes)
            sides = self._multiplied(node, axes)
            if len(sides) == 1:
                ((node, axes),) = sides
                continue
            whole = set(self.tracer.flat(axes))
            full = [set(self.tracer.flat(own)) == whole for _, own in sides]
            if any(full):
                self.match.require(
                    not all(full) and rate is None, "what is added to the state is no outer product", node
                )
                place = full.index(True)
                rate = self._operand(*sides[1 - place], scaled="rate")
                node, axes = sides[place]
                continue
            wanted = set(self.tracer.flat([channels]))
            held = [wanted & set(self.tracer.flat(own)) for _, own in sides]
            self.match.require(wanted in held, "no factor alone has the axes summed over", node)
            place = held.index(wanted)
            self.match.require(not held[1 - place], "both factors have axes summed over", node)
            leaves = {
                "key": self._operand(*sides[place], scaled="key"),
                "value": self._operand(*sides[1 - place], scaled="value"),
            }
            return leaves | ({"rate": rate} if rate is not None else {})
        return self.match.refuse("the chain before the scan is too long")

    def _multiplied(self, node: Node, axes: Axes) -> list[tuple[Node, Axes]]:
        """The factors of a product that sums nothing; one where the other is a number."""
        name, given = operator_name(node), bind(node) if node.op == "call_function" else {}
        number = given.get("other")
        number = -1.0 if name == "neg" else number
        if name in ("mul", "div", "neg", "rsub") and isinstance(number, (int, float)):
            plain = given.get("rounding_mode") is None and (name != "rsub" or (number == 0 and given["alpha"] == 1))
            self.match.require(plain and is_tensor(given["self"]), "more than a product is added to the state", node)
            factor = -1.0 if name == "rsub" else float(number)
            if name == "div":
                self.match.require(number, "a division by 0", node)
                factor = 1.0 / number
            self._add_number("times", factor, self.found.steps, node)
            self._take(node)
            return [(given["self"], axes)]
        if name == "mul" and is_tensor(given["self"]) and is_tensor(number):
            assert isinstance(number, Node)
            sides = []
            for side in (given["self"], number):
                own = self.tracer.aligned(side, axes)
                self.match.require(own is not None, "the product is broadcast", node)
                assert own is not None
                sides.append((side, own))
            self._take(node)
            return sides
        product = self._product(node, "what is added to the state is no outer product")
        self.match.require(product.addend is None, "more than a product is added to the state", node)
        sides = self._factors(product, axes)
        self.match.require(not self._summed(product, sides), "what is added to the state is a sum of products", node)
        return sides

    def _decay(self, node: object, axes: Axes) -> Leaf | None:
        """The decay; None where it is a number."""
        assert isinstance(node, Node)
        own = self.tracer.aligned(node, axes)
        self.match.require(own is not None, "the decay is broadcast", node)
        assert own is not None
        leaf = self._operand(node, own)
        number = bind(leaf.node)["fill_value"] if operator_name(leaf.node) in _FULL else None
        if not isinstance(number, (int, float)) or len(leaf.node.users) != 1:
            return leaf
        self._take(leaf.node)
        self.constant = None if number == 1 else float(number)
        return None

    def _initial(self, node: object, axes: Axes) -> Leaf | None:
        """The state before the first step; None where it is 0."""
        if node is None:
            return None
        assert isinstance(node, Node)
        own = self.tracer.aligned(node, axes)
        self.match.require(own is not None, "the initial state is broadcast", node)
        assert own is not None
        leaf = self._operand(node, own)
        made = leaf.node
        if made.op == "call_function" and operator_name(made) in _ZEROS:
            users = [user for user in made.users if user not in self.found.region]
            if is_made(made) or not users:
                self._take(made)
                return None
        return leaf


def _is_states(node: Node) -> bool:
    if node.op != "call_function" or operator_name(node) != "getitem" or node.args[1] != 0:
        return False
    call = node.args[0]
    integral = call.meta.get("integral") if isinstance(call, Node) else None
    return integral is not None and isinstance(integral.kernel, Diagonal) and isinstance(value_of(node), Tensor)
