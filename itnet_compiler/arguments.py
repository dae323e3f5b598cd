"""What the command line is given: a model by name, and inputs in a small notation.

A model is ``MODULE:CALLABLE`` or ``FILE.py:CALLABLE``; dots reach attributes. It may be a model, or anything that
returns one when called without arguments, alone or as ``(model, inputs)`` or ``(model, args, kwargs)``.

An input is ``[NAME=]DTYPE[SIZES]`` for a random tensor, integers with ``<LIMIT`` behind it (2 unless given), or
``NAME=VALUE`` for a Python literal::

    x=float32[2,3,224,224]     ids=int64[2,128]<1000     mask=bool[2,128]     use_cache=False
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError, ItnetError, ModelError

__all__ = ["Loaded", "load", "parse_inputs"]

_SHORT = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "float": "float32",
    "long": "int64",
    "int": "int64",
}

_TENSOR = re.compile(r"(?P<dtype>[a-z]+[0-9]*)\s*\[(?P<sizes>[^\]]*)\]\s*(?:<\s*(?P<limit>.+))?")
_EXAMPLE = "for example --inputs x=float32[2,3,224,224] or ids=int64[2,128]<1000"


@dataclass(frozen=True)
class Loaded:
    """A model with the inputs that came with it, if any."""

    model: Any
    args: Any = None
    kwargs: dict[str, Any] | None = None


def load(target: str) -> Loaded:
    """The model that ``MODULE:CALLABLE`` names.

    Raises:
        ModelError: if there is no such module or attribute, or it gives no model.
    """
    where, _, what = target.rpartition(":")
    if not where or not what:
        raise ModelError(
            f"{target!r} does not say where the model is",
            remedy="give MODULE:CALLABLE or FILE.py:CALLABLE, e.g. nets.py:make",
        )
    found: Any = _import(where)
    for name in what.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            names = (
                sorted(n for n, v in vars(found).items() if callable(v) and not n.startswith("_"))[:12]
                if vars(found)
                else []
            )
            remedy = f"it has {', '.join(names)}" if names else "check the spelling"
            raise ModelError(f"there is no {name!r} in {where}", remedy=remedy) from None
    if not isinstance(found, (nn.Module, tuple)):
        if not callable(found):
            raise ModelError(
                f"{target} is a {type(found).__name__}", remedy="name a model, or a function that returns one"
            )
        found = _called(found, target)
    return _unpacked(found, target)


def _import(where: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return _import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except ItnetError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(error.name + ".")):
            raise ModelError(
                f"there is no module {where!r}",
                remedy=f"run from its directory, install it, or give a file: {where}.py:…",
            ) from error
        raise ModelError(f"importing {where} failed: {error}", remedy=f"pip install {error.name}") from error
    except Exception as error:
        raise ModelError(
            f"importing {where} failed: {type(error).__name__}: {error}", source_line=_line(error)
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(
            f"there is no file {path}", remedy="give a path relative to the current directory, or an absolute one"
        )
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _called(function: Any, target: str) -> Any:
    try:
        return function()
    except ItnetError:
        raise
    except Exception as error:
        raise ModelError(
            f"calling {target} failed: {type(error).__name__}: {error}",
            remedy=f"name a function without arguments, such as: def make(): return {target.rpartition(':')[2]}(…)",
            source_line=_line(error),
        ) from error


def _unpacked(found: Any, target: str) -> Loaded:
    parts = found if isinstance(found, tuple) else (found,)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], nn.Module):
        shown = (
            f"({', '.join(type(part).__name__ for part in parts)})"
            if isinstance(found, tuple)
            else type(found).__name__
        )
        raise ModelError(
            f"{target} gives {shown}, not a torch.nn.Module",
            remedy="return a model, (model, inputs) or (model, args, kwargs)",
        )
    return Loaded(*parts)


def _line(error: BaseException) -> str | None:
    """Where in the user's code an error came from."""
    trace, line = error.__traceback__, None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename.replace("\\", "/")
        if not any(part in file for part in ("/itnet_compiler/", "/torch/", "/importlib/", "<frozen")):
            line = f"{file.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line


# ---- inputs


def parse_inputs(texts: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments; tensors are random with a fixed seed.

    Raises:
        InputError: for a text that does not follow the notation.
    """
    generator = torch.Generator().manual_seed(0)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for text in texts:
        found = re.fullmatch(r"\s*(?:(?P<name>[A-Za-z_]\w*)\s*=)?\s*(?P<value>\S.*?)\s*", text)
        if found is None:
            raise InputError(f"the input {text!r} is empty", remedy=_EXAMPLE)
        value = _value(found["value"], text, generator)
        if found["name"] is not None:
            if found["name"] in named:
                raise InputError(f"the input {found['name']!r} is given twice")
            named[found["name"]] = value
        elif named:
            raise InputError(
                f"the input {text!r} has no name but follows one that has", remedy="give it a name, NAME=…"
            )
        else:
            positional.append(value)
    return tuple(positional), named


def _value(text: str, whole: str, generator: torch.Generator) -> Any:
    tensor = _TENSOR.fullmatch(text)
    if tensor is not None:
        return _tensor(tensor, whole, generator)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise InputError(f"the input {whole!r} is neither DTYPE[SIZES] nor a Python value", remedy=_EXAMPLE) from None


def _tensor(found: re.Match[str], whole: str, generator: torch.Generator) -> Tensor:
    name = _SHORT.get(found["dtype"], found["dtype"])
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(
            f"there is no dtype {found['dtype']!r} in {whole!r}", remedy="use float32, int64, bool, bfloat16 …"
        )
    try:
        sizes = [int(size) for size in found["sizes"].split(",") if size.strip() or "," in found["sizes"]]
    except ValueError:
        sizes = [-1]
    if any(size < 0 for size in sizes):
        raise InputError(
            f"the sizes [{found['sizes']}] in {whole!r} are not whole numbers separated by commas", remedy=_EXAMPLE
        )
    limit = found["limit"]
    if limit is not None and (dtype.is_floating_point or not limit.strip().isdigit() or int(limit) < 1):
        raise InputError(
            f"the limit <{limit} in {whole!r} is not possible",
            remedy="integers may be limited, e.g. ids=int64[2,128]<1000",
        )
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(sizes, generator=generator, dtype=torch.complex64 if dtype.is_complex else None).to(dtype)
    if dtype is torch.bool:
        return torch.ones(sizes, dtype=torch.bool)
    return torch.randint(0, int(limit or 2), sizes, generator=generator).to(dtype)
