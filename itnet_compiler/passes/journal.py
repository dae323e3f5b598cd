"""The journal of a rewrite: what each rule proposed, what became of it, and how near the misses came."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Entry", "Journal"]


@dataclass(frozen=True)
class Entry:
    """One line of the journal.

    Attributes:
        status: ``replaced``, ``refused`` (the rule said no) or ``rolled back`` (a check failed).
        rule: Name of the rule.
        anchor: Graph node at which the rule was tried.
        integral: Name of the integral made, where one was.
        nodes: Names of the nodes it replaced, or would have replaced as far as it came.
        reason: Why not, where it was not replaced.
        depth: Requirements met before the refusal.
        error: Worst verification error.
        module_path: Module that the anchor came from.
        source_line: ``file.py:12`` in the user's code.
        steps: Of a loop that was re-rolled: how many steps it has at the length of the capture.
    """

    status: str
    rule: str
    anchor: str
    integral: str | None = None
    nodes: tuple[str, ...] = ()
    reason: str | None = None
    depth: int = 0
    error: float | None = None
    module_path: str = ""
    source_line: str | None = None
    steps: int | None = None


@dataclass
class Journal:
    """All entries of one graph, in the order in which they were made.

    Attributes:
        entries: One for each rule and place.
        least: The smallest length that loops may have, of those that may have any; None where it is fixed.
        fixed: Why the length is fixed, where another one has been looked at.
    """

    entries: list[Entry] = field(default_factory=list)
    least: int | None = None
    fixed: str = ""

    def add(self, entry: Entry) -> None:
        """Append ``entry``."""
        self.entries.append(entry)

    def loops(self) -> list[Entry]:
        """Of every loop that was re-rolled."""
        return [entry for entry in self.entries if entry.steps is not None]

    def joined(self) -> bool:
        """Whether an integral stands for more than one operator, so that the graph is other code than was captured."""
        return any(entry.status == "replaced" and (entry.steps or len(entry.nodes) > 1) for entry in self.entries)

    def near_misses(self) -> dict[str, Entry]:
        """For every node that was tried and not replaced: the entry that came furthest."""
        done = {name for entry in self.entries if entry.status == "replaced" for name in entry.nodes}
        best: dict[str, Entry] = {}
        for entry in self.entries:
            if entry.status == "replaced" or entry.anchor in done:
                continue
            known = best.get(entry.anchor)
            if known is None or _rank(entry) > _rank(known):
                best[entry.anchor] = entry
        return best

    def reasons(self) -> dict[str, Entry]:
        """For every node: of the rules that were tried there or came by in vain, the one that got furthest."""
        best: dict[str, Entry] = {}
        for entry in self.entries:
            for name in () if entry.status == "replaced" else (entry.anchor, *entry.nodes):
                if name not in best or _rank(entry) > _rank(best[name]):
                    best[name] = entry
        return best


def _rank(entry: Entry) -> tuple[bool, int]:
    return entry.status == "rolled back", entry.depth
