"""Where in the user's code a node comes from: the frames of a call outside torch.

The tracer can record that too, but symbolises every frame of its own stack for every node, an eighth of a capture.
"""

from __future__ import annotations

import functools
import linecache
import os
import sys

import torch

__all__ = ["user_frames"]

_TORCH, _HERE = (os.path.dirname(path) + os.sep for path in (torch.__file__, __file__))


def user_frames() -> str | None:
    """The frames of this thread that are neither torch's nor the tracer's, outermost first, as a traceback shows them.

    From the first call of a ``forward`` on, with which the model begins; None where there is none.
    """
    frame, found, begin = sys._getframe(1), [], 0
    while frame is not None:
        code = frame.f_code
        if _is_shown(code.co_filename):
            found.append((code.co_filename, frame.f_lineno, code.co_name))
        if code.co_name == "forward":
            begin = len(found)
        frame = frame.f_back  # type: ignore[assignment]
    return "\n".join(map(_shown, reversed(found[:begin]))) or None


@functools.cache
def _is_shown(file: str) -> bool:
    return not file.startswith((_TORCH, _HERE, "<frozen", "<eval_with_key>"))


def _shown(frame: tuple[str, int, str]) -> str:
    file, line, name = frame
    return f'File "{file}", line {line}, in {name}\n    {linecache.getline(file, line).strip()}'
