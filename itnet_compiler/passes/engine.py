"""The driver of detection: tries every rule at every node, keeps the non-overlapping proposals, verifies, replaces.

Rules are found by scanning the package ``rules``; they propose and never edit the graph.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Callable
from functools import cache, partial

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ..ir.integral import Integral, Plan, Verification
from ..ir.naming import module_path, source_line
from ..lowering.base import Lowered, default_lowering
from ..registry import scan
from ..settings import NEAR_MISSES, debug
from .effects import Effects, is_random, written_arguments
from .journal import Entry, Journal
from .loops.reroll import reroll
from .match import Proposal, Refusal, Rule, Unrelated, is_made, op_name
from .sampling import like
from .verify import Verifier

__all__ = ["detect", "integral_of", "roll_loops", "rules"]

Tick = Callable[[], None]


@cache
def rules() -> tuple[Rule, ...]:
    """Every detection rule, in alphabetical order of module and then of definition."""
    found = []
    for module in scan("itnet_compiler.passes.rules"):
        found += [value for value in vars(module).values() if isinstance(value, Rule)]
    return tuple(found)


def integral_of(node: Node) -> Integral | None:
    """The integral that a graph node calls, or None for any other node."""
    return node.meta.get("integral") if node.op == "call_module" else None


def roll_loops(graph: Graph, *, verifier: Verifier | None) -> Journal:
    """Replace every unrolled loop by one node, in place: the first step of ``detect``."""
    journal = Journal()
    reroll(graph, journal, verify=verifier is not None, name=partial(_unique, {}))
    return journal


def detect(
    graph: Graph,
    *,
    verifier: Verifier | None,
    use_rules: tuple[Rule, ...] | None = None,
    begin: Callable[[int], Tick] | None = None,
    rolled: Journal | None = None,
) -> Journal:
    """Replace every region that a rule recognises by an integral node, in place.

    Args:
        graph: Flat ATen graph with fake values, module stacks and stack traces on its nodes.
        verifier: Checks each rewrite before it is made; None to make them unchecked.
        use_rules: The rules to try; all registered ones by default.
        begin: Called with the number of proposals; what it returns is called after each of them.
        rolled: What ``roll_loops`` did, where it has been over the graph already.

    Returns:
        What each rule did.
    """
    if rolled is None:
        rolled = roll_loops(graph, verifier=verifier) if use_rules is None else Journal()
    journal = Journal(list(rolled.entries))
    names = Counter(integral.name.partition("#")[0] for node in graph.nodes if (integral := integral_of(node)))
    proposals = _propose(graph, rules() if use_rules is None else use_rules, journal)
    tick = begin(len(proposals)) if begin is not None else lambda: None
    effects = Effects(graph)
    replaced: dict[Node, Node] = {}
    for rule, offered in proposals:
        # Operands may have become results of integrals made in the meantime.
        operands = map_arg(dict(offered.operands), lambda node: replaced.get(node, node))
        proposal = dataclasses.replace(offered, operands=operands)
        lowered, verification, problem = _prepare(proposal, effects, verifier)
        if lowered is None or problem is not None:
            journal.add(_entry("rolled back", rule, proposal, reason=problem, error=verification.error))
            debug(NEAR_MISSES, "rolled back %s at %s: %s", rule.name, proposal.region[-1].name, problem)
        else:
            integral = _replace(graph, proposal, lowered, verification, names, replaced)
            journal.add(_entry("replaced", rule, proposal, integral=integral.name, error=verification.error))
        tick()
    graph.lint()
    return journal


def _prepare(
    proposal: Proposal, effects: Effects, verifier: Verifier | None
) -> tuple[Lowered | None, Verification, str | None]:
    """What the node would run, how that was checked, and why it must not be made, if so."""
    verification = Verification("skipped", note="verify=False")
    problem = _region_problem(proposal, effects)
    if problem is not None:
        return None, verification, problem
    try:
        lowered = default_lowering(proposal.spec).build(proposal.spec)
        if verifier is not None:
            verification = verifier.check(proposal, lowered)
    except Exception as error:
        # A fault in one family must not cost the user the other rewrites; the report shows it.
        return None, verification, f"{type(error).__name__}: {error}"
    return lowered, verification, verification.note if verification.status == "failed" else None


def _propose(graph: Graph, tried: tuple[Rule, ...], journal: Journal) -> list[tuple[Rule, Proposal]]:
    """Proposals that do not overlap; of two that do, the larger region wins, then the earlier one.

    What is made of numbers alone, such as a causal mask, may be part of several, and so may what only moves values.
    """
    by_anchor: dict[str, list[Rule]] = {}
    for rule in tried:
        for anchor in rule.anchors:
            by_anchor.setdefault(anchor, []).append(rule)
    order = {node: index for index, node in enumerate(graph.nodes)}
    offered: list[tuple[Rule, Proposal]] = []
    for node in graph.nodes:
        for rule in by_anchor.get(op_name(node), ()) if node.op == "call_function" else ():
            try:
                offered.append((rule, rule(node)))
            except Unrelated:
                continue
            except Refusal as refusal:
                journal.add(_refusal(rule, node, refusal))
            except Exception as error:
                journal.add(_refusal(rule, node, Refusal(f"the rule failed: {type(error).__name__}: {error}", node, 0)))
    taken: dict[Node, Rule] = {}
    lent: dict[Node, Rule] = {}
    kept = []
    for rule, proposal in sorted(offered, key=lambda item: (-len(item[1].region), order[item[1].region[0]])):
        own = [node for node in proposal.region if not proposal.may_stay(node)]
        claims = {node: taken.get(node) or lent.get(node) for node in own} | {n: taken.get(n) for n in proposal.shared}
        if other := next((node for node, owner in claims.items() if owner), None):
            reason = f"{claims[other].name} takes {other.name}, which this rule would take too"
            journal.add(_entry("refused", rule, proposal, reason=reason))
            continue
        taken |= dict.fromkeys(own, rule)
        lent |= dict.fromkeys(proposal.shared, rule)
        kept.append((rule, proposal))
    return sorted(kept, key=lambda item: order[item[1].region[-1]])


def _region_problem(proposal: Proposal, effects: Effects) -> str | None:
    """Why the region cannot be cut out as one node, or None."""
    inside, outputs = set(proposal.region), set(proposal.outputs)
    for node in proposal.region:
        if node not in outputs and not proposal.may_stay(node) and any(user not in inside for user in node.users):
            return f"the intermediate value {node.name} is used elsewhere"
    obstacle = effects.obstacle(node for node in proposal.region if not is_made(node))
    if obstacle is not None:
        return obstacle[0]
    followers = _followers(proposal)
    needed = {source for node in proposal.region for source in node.all_input_nodes}
    for node in followers:
        if node in needed:
            return f"{node.name} both needs a result of the region and feeds it"
        if written_arguments(node) or is_random(node):
            return f"{op_name(node)} acts on a result of the region before the region is complete"
    return None


def _followers(proposal: Proposal) -> list[Node]:
    """Outside nodes between the first output and the last node of the region that depend on an output."""
    inside, needs = set(proposal.region), set(proposal.outputs)
    node, last = min(proposal.outputs), max(proposal.region)
    found = []
    while node is not last:
        if node not in inside and any(source in needs for source in node.all_input_nodes):
            found.append(node)
            needs.add(node)
        node = node.next
    return found


def _replace(
    graph: Graph,
    proposal: Proposal,
    lowered: Lowered,
    verification: Verification,
    names: dict[str, int],
    replaced: dict[Node, Node],
) -> Integral:
    anchor = proposal.region[-1]
    path = module_path(anchor)
    integral = Integral(
        proposal.spec,
        lowered,
        Plan(default_lowering(proposal.spec).name),
        name=_name_of_part(proposal, path) or _unique(names, path or proposal.spec.origin),
        module_path=path,
        source_line=source_line(anchor),
        verification=verification,
        examples={role: like(operand) for role, operand in proposal.operands.items()},
    )
    position = last = max(proposal.region)
    for node in _followers(proposal):
        position.append(node)
        position = node
    with graph.inserting_before(last):
        call = graph.call_module(integral.name, (), dict(proposal.operands))
        call.meta = dict(anchor.meta) | {"integral": integral}
        results = {proposal.outputs[0]: call}
        if len(proposal.outputs) > 1:
            results = {
                node: graph.call_function(operator.getitem, (call, index))
                for index, node in enumerate(proposal.outputs)
            }
            call.meta["val"] = tuple(node.meta.get("val") for node in proposal.outputs)
    for node, result in results.items():
        if result is not call:
            result.meta = dict(node.meta)
        else:
            call.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(result)
        replaced[node] = result
    for node in sorted(proposal.region, reverse=True):
        if not node.users:  # what may stay may be used elsewhere too
            graph.erase_node(node)
    return integral


def _name_of_part(proposal: Proposal, path: str) -> str | None:
    """The name of an integral that becomes part of another one of the same module."""
    parts = [integral for node in proposal.region if (integral := integral_of(node)) is not None]
    return parts[0].name if path and parts and parts[0].module_path == path else None


def _unique(names: dict[str, int], base: str) -> str:
    names[base] = names.get(base, 0) + 1
    return base if names[base] == 1 else f"{base}#{names[base]}"


def _refusal(rule: Rule, anchor: Node, refusal: Refusal) -> Entry:
    debug(NEAR_MISSES, "%s refused at %s: %s", rule.name, anchor.name, refusal.reason)
    return Entry(
        "refused",
        rule.name,
        anchor.name,
        nodes=tuple(node.name for node in refusal.passed),
        reason=refusal.reason,
        depth=refusal.depth,
        module_path=module_path(refusal.node) or module_path(anchor),
        source_line=source_line(refusal.node) or source_line(anchor),
    )


def _entry(status: str, rule: Rule, proposal: Proposal, **rest: object) -> Entry:
    anchor = proposal.region[-1]
    return Entry(
        status,
        rule.name,
        anchor.name,
        nodes=tuple(node.name for node in proposal.region),
        module_path=module_path(anchor),
        source_line=source_line(anchor),
        **rest,  # type: ignore[arg-type]
    )
