"""The error family: every error says what happened, where, and what to do next."""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "InputError",
    "ItnetError",
    "KernelError",
    "LoweringError",
    "ModelError",
    "VerificationError",
]


class ItnetError(Exception):
    """Base of all errors raised by itnet.

    Args:
        reason: What went wrong, in one sentence.
        remedy: What the user can do about it.
        node: Name of the graph node or module path concerned.
        source_line: ``file.py:12`` in the user's code, where known.
    """

    def __init__(
        self,
        reason: str,
        *,
        remedy: str | None = None,
        node: str | None = None,
        source_line: str | None = None,
    ) -> None:
        self.reason = reason
        self.remedy = remedy
        self.node = node
        self.source_line = source_line
        where = ", ".join(part for part in (node, source_line) if part)
        text = reason if not where else f"{reason} [at {where}]"
        super().__init__(text if remedy is None else f"{text}\n  Remedy: {remedy}")

    def sentence(self) -> str:
        """Reason, source line and remedy in one line, for a report."""
        where = f" [{self.source_line}]" if self.source_line else ""
        return f"{self.reason}{where}" + (f"; {self.remedy}" if self.remedy else "")


class ModelError(ItnetError, TypeError):
    """The object given is not a model that can be unified."""


class InputError(ItnetError, ValueError):
    """Example inputs are missing or do not fit the model."""


class CaptureError(ItnetError, RuntimeError):
    """``torch.export`` could not turn the model into a graph."""


class VerificationError(ItnetError, RuntimeError):
    """The unified model does not compute what the original computes."""


class LoweringError(ItnetError, RuntimeError):
    """A lowering was asked for that the node does not support."""


class KernelError(ItnetError, ValueError):
    """A kernel function does what it cannot do, or is given what does not fit it."""
