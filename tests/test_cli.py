"""The command line: what it prints, its exit codes, and its errors without stack traces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from itnet_compiler import arguments, cli
from itnet_compiler.arguments import load, parse_inputs
from itnet_compiler.errors import InputError, ModelError
from itnet_compiler.version import __version__

ROOT = Path(__file__).parents[1]

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv1d(3, width, 3, padding=1)
    def forward(self, x, *, double: bool = False):
        y = self.conv(x)
        return y + y if double else y

class Needy(nn.Module):
    def __init__(self, width):
        super().__init__()

def make():
    return Net().eval()

def with_inputs():
    return make(), torch.randn(2, 3, 9)

def with_kwargs():
    return make(), (torch.randn(2, 3, 9),), {"double": True}

def broken():
    raise ValueError("no weights here")

def number():
    return 7

def pair():
    return 7, 8

instance = make()
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "cli_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "cli_nets", raising=False)
    return "cli_nets.py"


def run(*words: str) -> int:
    return cli.main(list(words))


# ---- commands


def test_unify_prints_the_summary(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("unify", f"{nets}:make", "--inputs", "float32[2,3,9]") == 0
    assert capsys.readouterr().out.startswith("Net: 1 integral (1 stationary) · mixing coverage 100 % · verified")


def test_unify_takes_inputs_from_the_callable(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("unify", f"{nets}:with_kwargs", "--ir", "--no-verify") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Net(%x: f32[N,3,L]) {")
    assert "add(%conv, %conv)" in shown


def test_unify_as_json(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("unify", "cli_nets:with_inputs", "--json") == 0
    assert json.loads(capsys.readouterr().out)["integrals"][0]["origin"] == "conv1d"


def test_inspect_prints_the_report_or_one_place(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", f"{nets}:with_inputs", "--no-verify") == 0
    assert "total integrals" in capsys.readouterr().out
    assert run("inspect", f"{nets}:with_inputs", "conv", "--no-verify") == 0
    assert "── conv ──" in capsys.readouterr().out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    assert "capabilities" in capsys.readouterr().out
    assert run("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["itnet"] == __version__


def test_demo_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import itnet_compiler.demo

    monkeypatch.setattr(itnet_compiler.demo, "run", lambda stream: 1)
    assert run("demo") == 1


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["--help"], ["unify", "--help"], ["inspect", "--help"]):
        with pytest.raises(SystemExit) as ended:
            run(*words)
        assert ended.value.code == 0
        assert __version__ in capsys.readouterr().out if words == ["--version"] else "itnet" in capsys.readouterr().out


# ---- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unify", "cli_nets"], "does not say where the model is"),
        (["unify", "cli_nets.py:absent"], "there is no 'absent' in cli_nets.py"),
        (["unify", "absent.py:make"], "there is no file absent.py"),
        (["unify", "absent_module:make"], "there is no module 'absent_module'"),
        (["unify", "cli_nets.py:broken"], "failed: ValueError: no weights here [at cli_nets.py:"),
        (["unify", "cli_nets.py:Needy"], "calling cli_nets.py:Needy failed: TypeError"),
        (["unify", "cli_nets.py:number"], "gives int, not a torch.nn.Module"),
        (["unify", "cli_nets.py:pair"], "gives (int, int), not a torch.nn.Module"),
        (["unify", "cli_nets.py:NETS.x"], "there is no 'NETS'"),
        (["unify", "cli_nets.py:make"], "Remedy"),
        (["unify", "cli_nets.py:make", "--inputs", "float32[2,4,9]"], "the model itself does not run"),
        (["unify", "cli_nets.py:make", "--inputs", "float33[2]"], "there is no dtype 'float33'"),
        (["inspect", "cli_nets.py:with_inputs", "convv", "--no-verify"], "did you mean conv?"),
    ],
)
def test_user_errors_have_no_stack_trace(
    nets: str, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(*words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("itnet: error: ")
    assert message in shown.err
    assert "Traceback" not in shown.err


def test_debug_shows_the_stack_trace(
    nets: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITNET_DEBUG", "1")
    assert run("unify", f"{nets}:broken") == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "no weights here" in shown


def test_interruption(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(target: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(arguments, "load", interrupted)
    assert run("unify", "any:thing") == 130
    assert capsys.readouterr().err == "itnet: interrupted; the model is untouched\n"


def test_unknown_commands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["optimise"]):
        with pytest.raises(SystemExit) as ended:
            run(*words)
        assert ended.value.code == 2
        assert "usage: itnet" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m itnet_compiler.cli doctor --json | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


# ---- models and inputs


def test_load(nets: str) -> None:
    for what in ("make", "Net", "instance"):
        loaded = load(f"cli_nets:{what}")
        assert isinstance(loaded.model, nn.Module)
        assert loaded.args is None
    assert load("cli_nets:with_kwargs").kwargs == {"double": True}
    assert isinstance(load("torch.nn:Identity").model, nn.Identity)


def test_a_missing_dependency_of_the_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cli_needs.py").write_text("import certainly_absent")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ModelError) as caught:
        load("cli_needs:make")
    assert caught.value.remedy == "pip install certainly_absent"


def test_parse_inputs() -> None:
    args, kwargs = parse_inputs(
        ["float32[2,3]", "i64[4]<10", "[1, 2]", "mask=bool[2,2]", "x=bf16[]", "flag=False", "name='a=b'", "n = 3"]
    )
    assert args[0].shape == (2, 3)
    assert args[0].dtype is torch.float32
    assert args[1].shape == (4,)
    assert int(args[1].max()) < 10
    assert args[2] == [1, 2]
    assert kwargs["mask"].dtype is torch.bool
    assert kwargs["x"].shape == ()
    assert kwargs["x"].dtype is torch.bfloat16
    assert kwargs["flag"] is False
    assert kwargs["name"] == "a=b"
    assert kwargs["n"] == 3


def test_inputs_are_the_same_every_time() -> None:
    (first,), _ = parse_inputs(["float32[5]"])
    (second,), _ = parse_inputs(["float32[5]"])
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["float32[2,,3]"], "whole numbers"),
        (["float32[a]"], "whole numbers"),
        (["float32[-1]"], "whole numbers"),
        (["float32[2]<3"], "limit"),
        (["int64[2]<0"], "limit"),
        (["int64[2]<x"], "limit"),
        (["complex7[2]"], "no dtype"),
        (["nonsense"], "neither"),
        ([" "], "empty"),
        (["a=1", "a=2"], "given twice"),
        (["a=1", "float32[2]"], "has no name but follows"),
    ],
)
def test_bad_inputs(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_inputs(texts)
