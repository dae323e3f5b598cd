"""The rules of the house."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import itnet
import itnet_compiler
from tests.documents import ROOT

PACKAGE = ROOT / "itnet_compiler"
BASE = {"errors", "registry", "settings", "version"}

# Who may import whom, innermost first. A part is a sub-package or a module beside them.
MAY_IMPORT: dict[str, set[str]] = {part: set() for part in BASE} | {"progress": BASE}
MAY_IMPORT["ir"] = BASE
MAY_IMPORT["lowering"] = BASE | {"ir"}
MAY_IMPORT["passes"] = MAY_IMPORT["lowering"] | {"lowering"}
MAY_IMPORT["capture"] = MAY_IMPORT["passes"] | {"passes"}
MAY_IMPORT["runtime"] = MAY_IMPORT["capture"] | {"capture", "progress"}
MAY_IMPORT["nn"] = MAY_IMPORT["runtime"] | {"runtime"}
MAY_IMPORT["models"] = MAY_IMPORT["nn"] | {"nn"}
MAY_IMPORT["inspect"] = MAY_IMPORT["runtime"] | {"runtime"}
MAY_IMPORT["unified"] = MAY_IMPORT["inspect"] | {"inspect"}
MAY_IMPORT["unify"] = MAY_IMPORT["unified"] | {"unified"}
MAY_IMPORT["demo"] = BASE | {"unify"}
MAY_IMPORT["arguments"] = BASE
MAY_IMPORT["cli"] = MAY_IMPORT["unify"] | {"arguments", "demo", "unify"}
MAY_IMPORT["__init__"] = MAY_IMPORT["unify"] | {"models", "nn", "unify"}

NETWORK = set(
    "aiohttp asyncio ftplib http httpx huggingface_hub requests smtplib socket socketserver ssl telnetlib urllib"
    " urllib3 webbrowser xmlrpc".split()
)
HEAVY = tuple("llvmlite matplotlib networkx numba onnx sklearn timm torchvision transformers triton".split())
LONGEST = 400
# What modules of runtime/scan are written in; without them others run.
COMPILERS = {"llvmlite", "numba", "triton"}

MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = [*MODULES, *sorted((ROOT / "itnet").rglob("*.py"))]


def _name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _part(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(file: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of what a file imports, those inside functions included, with their lines."""
    package = _name(file) if file.name == "__init__.py" else _name(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def _ids(files: list[Path]) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in files]


@pytest.mark.parametrize("file", MODULES, ids=_ids(MODULES))
def test_imports_go_one_way(file):
    part = _part(file)
    assert part in MAY_IMPORT, f"{part} is new: give it a place in MAY_IMPORT"
    for name, line in _imports(file):
        if name.startswith("itnet_compiler."):
            other = name.split(".")[1]
            assert other == part or other in MAY_IMPORT[part], f"{file.name}:{line}: {part} imports {other}"
        assert name.split(".")[0] != "itnet", f"{file.name}:{line}: the implementation imports its own front"


@pytest.mark.parametrize("file", CODE, ids=_ids(CODE))
def test_no_network(file):
    for name, line in _imports(file):
        assert name.split(".")[0] not in NETWORK, f"{file.name}:{line} imports {name}"


@pytest.mark.parametrize("file", [file for file in CODE if file.name != "settings.py"], ids=lambda file: file.name)
def test_only_settings_reads_the_environment(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv"), f"{file.name}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert not {"environ", "getenv"} & {alias.name for alias in node.names}, f"{file.name}:{node.lineno}"


def test_no_file_is_too_long():
    files = [*CODE, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


@pytest.mark.parametrize("file", CODE, ids=_ids(CODE))
def test_public_names_exist_and_are_documented(file):
    try:
        module = importlib.import_module(_name(file))
    except ModuleNotFoundError as error:
        if error.name not in COMPILERS:
            raise
        pytest.skip(f"{error.name} is not installed")
    assert module.__doc__, "the module says nothing of itself"
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name} has no docstring"
        if inspect.isclass(value):
            for member, function in vars(value).items():
                if not member.startswith("_") and isinstance(function, (property, classmethod, type(_name))):
                    documented = inspect.getdoc(getattr(value, member)) or member in _obvious(value)
                    assert documented, f"{name}.{member} has no docstring"


def _obvious(cls: type) -> set[str]:
    """Members that a protocol's reader needs no sentence for."""
    return {"function", "source"} if getattr(cls, "_is_protocol", False) else set()


def test_the_front_re_exports_and_nothing_else():
    assert itnet.__all__ == itnet_compiler.__all__
    assert all(getattr(itnet, name) is getattr(itnet_compiler, name) for name in itnet.__all__)
    assert itnet.__all__ == sorted(itnet.__all__), "sorted, as ruff sorts"


def test_importing_is_light():
    """Beyond torch itself, nothing heavy is loaded."""
    script = (
        "import sys, torch; before = set(sys.modules)\n"
        "import itnet\n"
        f"print(sorted({set(HEAVY)!r} & ({{name.split('.')[0] for name in set(sys.modules) - before}})))"
    )
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert out.stderr == ""


def test_one_version():
    text = (ROOT / "itnet_compiler" / "version.py").read_text(encoding="utf-8")
    assert f'__version__ = "{itnet.__version__}"' in text
    assert text.count("__version__") == 1
    try:
        installed = importlib.metadata.version("itnet-compiler")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert installed == itnet.__version__


def test_both_packages_are_typed():
    assert (ROOT / "itnet" / "py.typed").exists()
    assert (PACKAGE / "py.typed").exists()
