"""What iterations came to: lowerings that iterate say it of the last call, in ``node.source()`` and ``explain``."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Outcome", "outcome_of", "record"]

_LIMIT = 256
_known: dict[str, Outcome] = {}


@dataclass(frozen=True)
class Outcome:
    """How the iterations of one call ended.

    Attributes:
        steps: Length of the loop.
        iterations: How many were made, the most in any window where the loop is solved in several.
        residual: The last one, in the units that the lowering states, likewise.
        alone: Steps that were run one by one, since the iterations did not converge for them.
    """

    steps: int
    iterations: int
    residual: float
    alone: int = 0

    @property
    def converged(self) -> bool:
        """Whether no step had to be run by itself."""
        return not self.alone

    def __str__(self) -> str:
        found = f"{self.steps} steps, {self.iterations} iterations, residual {self.residual:.1e}"
        return found if self.converged else f"{found}: not converged, so {self.alone} steps were run one by one"


def record(key: str, outcome: Outcome) -> None:
    """Keep the outcome of the last call under a key, such as the text of a step; the oldest ones are forgotten."""
    _known.pop(key, None)
    _known[key] = outcome
    if len(_known) > _LIMIT:
        del _known[next(iter(_known))]


def outcome_of(key: str) -> Outcome | None:
    """The last one, if there was a call."""
    return _known.get(key)
