"""Generated code on the disk."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from ...settings import CODE, cache_directory, debug

__all__ = ["module_of", "write_whole"]


def module_of(folder: str, text: str) -> ModuleType:
    """A source text as a module, kept in a file of the cache so that Triton finds and caches its kernels."""
    name = f"itnet_{folder}_" + hashlib.sha256(text.encode()).hexdigest()[:32]
    file = cache_directory() / folder / f"{name}.py"
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_whole(file, text.encode())
        debug(CODE, "%s", text)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def write_whole(file: Path, content: bytes) -> None:
    """Write a file at once and whole, so that another process never reads half of it. Raises ``OSError``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    Path(name).replace(file)
