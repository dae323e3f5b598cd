"""This CPU's machine code from LLVM code: compiled once, kept on disk, called without the interpreter's lock."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding as llvm

from ...settings import CODE, cache_directory, debug
from .files import write_whole

__all__ = ["Written", "compiled", "lanes"]


@dataclass(frozen=True)
class Written:
    """LLVM code of one function ``run``, and the float32 numbers of scratch memory that a call of it needs."""

    text: str
    scratch: int


@cache
def _target() -> tuple[Any, str]:
    """(target machine of this CPU, what tells its code from that of others)."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
    flags = features.flatten()
    if features.get("avx512f"):
        flags += ",-prefer-256-bit"
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=name, features=flags, opt=3, jit=True)
    return machine, f"{llvmlite.__version__} {llvm.llvm_version_info} {name} {flags}"


@cache
def lanes() -> int:
    """float32 numbers in a vector register."""
    features = llvm.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx2") else 4


def compiled(key: str, arguments: int, write: Callable[[], Written]) -> tuple[Callable[..., None], int]:
    """The function ``run`` that ``write`` gives, and the scratch memory that it needs.

    Args:
        key: What the code is written from; with the same key it is read from the disk and not written again.
        arguments: How many integers or addresses ``run`` takes.
        write: Writes the LLVM code.
    """
    machine, identity = _target()
    name = hashlib.sha256("\n".join((identity, _writers(), key)).encode()).hexdigest()
    file = cache_directory() / "tiled" / f"{name}.o"
    code = _read(file)
    if code is None:
        written = write()
        debug(CODE, "%s", written.text)
        code = written.scratch.to_bytes(8, "little") + _compile(written.text, machine)
        _write(file, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code[8:]))
    engine.finalize_object()
    _engines.append(engine)
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(engine.get_function_address("run"))
    return run, int.from_bytes(code[:8], "little")


@cache
def _writers() -> str:
    """What tells the code of this version of the writers from that of others: their source."""
    here = Path(__file__).parent
    files = sorted([*here.glob("vector_*.py"), here / "schedule.py"])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# Engines own the code that they have loaded.
_engines: list[Any] = []


def _compile(text: str, machine: Any) -> bytes:
    module = llvm.parse_assembly(text)
    module.verify()
    # The code is in vectors already, and unrolled where that pays.
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _write(file: Path, code: bytes) -> None:
    """Keep the code; a full or read-only disk costs time only."""
    try:
        write_whole(file, code)
    except OSError as error:
        debug(CODE, "compiled code is not kept: %s", error)
