"""The command line: ``itnet unify``, ``inspect``, ``demo``, ``doctor``.

Heavy modules are imported by the command that needs them, so that ``itnet --help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from .errors import ItnetError
from .settings import debug_level
from .version import __version__

__all__ = ["main"]

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_MODEL = """\
the model:
  MODULE:CALLABLE or FILE.py:CALLABLE, imported from the current directory or the Python path. It is a model, or
  something that returns one when called without arguments, alone or as (model, inputs) or (model, args, kwargs).

the inputs:
  [NAME=]DTYPE[SIZES] makes a random tensor; integers are below LIMIT with <LIMIT behind (2 unless given); NAME=VALUE
  passes a Python value. Quote them, for the shell's sake. Transformers, timm and Lightning models need none.
"""

_EXAMPLES = {
    "unify": """\
examples:
  itnet unify torchvision.models:resnet50 --inputs "float32[2,3,224,224]"
  itnet unify nets.py:make_encoder --inputs "ids=int64[2,128]<30000" "mask=bool[2,128]" --ir
  itnet unify my_package.nets:Tagger --inputs "int64[4,32]<100" --json > report.json
""",
    "inspect": """\
examples:
  itnet inspect torchvision.models:resnet50 --inputs "float32[2,3,224,224]"              the report
  itnet inspect torchvision.models:resnet50 layer1.0 --inputs "float32[2,3,224,224]"     one block
  itnet inspect nets.py:make_encoder "*.attention" --inputs "ids=int64[2,128]<30000"     a glob
""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (a demo or check failed), 2 (a user error), 130 (interrupted)."""
    options = _parser().parse_args(argv)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except KeyboardInterrupt:
        _complain("interrupted; the model is untouched")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except ItnetError as error:
        if debug_level():
            traceback.print_exc()
        _complain(f"error: {error}")
        return USAGE


def _complain(text: str) -> None:
    print(f"itnet: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="itnet",
        description="Rewrite a PyTorch network so that every mixing layer is one learnable integral transform.",
        epilog="ITNET_DEBUG=1..4 says more about what happens and shows where errors come from.",
    )
    parser.add_argument("--version", action="version", version=f"itnet-compiler {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    unify = _command(commands, "unify", _unify, "unify a model and show the summary")
    _add_model(unify)
    form = unify.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the whole report as JSON")
    form.add_argument("--ir", action="store_true", help="print the rewritten graph as text")

    inspect = _command(commands, "inspect", _inspect, "show the report, or everything about one place")
    _add_model(inspect)
    inspect.add_argument(
        "path", metavar="PATH", nargs="?", help="module path, node name or glob; the report without it"
    )

    _command(commands, "demo", _demo, "train, unify and fine-tune a small network on handwritten digits")
    doctor = _command(commands, "doctor", _doctor, "versions, devices, and what is missing for what")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def _command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    epilog = f"{_MODEL}\n{_EXAMPLES[name]}" if name in _EXAMPLES else None
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="MODULE:CALLABLE or FILE.py:CALLABLE")
    parser.add_argument("--inputs", metavar="SPEC", nargs="+", default=[], help="example inputs, see below")
    parser.add_argument("--no-verify", action="store_true", help="do not check the rewrites")


def _unified(options: argparse.Namespace) -> Any:
    from .arguments import load, parse_inputs
    from .unify import unify

    args, kwargs = parse_inputs(options.inputs)
    loaded = load(options.model)
    if options.inputs:
        return unify(loaded.model, args or None, example_kwargs=kwargs or None, verify=not options.no_verify)
    return unify(loaded.model, loaded.args, example_kwargs=loaded.kwargs, verify=not options.no_verify)


def _unify(options: argparse.Namespace) -> int:
    from .inspect.report import Report
    from .inspect.summary import summary
    from .unified import program_of

    program = program_of(_unified(options))
    if options.json:
        print(json.dumps(Report(program).to_dict(), indent=2))
    elif options.ir:
        from .inspect.overview import ir

        print(ir(program))
    else:
        print(summary(program))
    return OK


def _inspect(options: argparse.Namespace) -> int:
    from .inspect.explain import explain
    from .inspect.report import Report
    from .unified import program_of

    program = program_of(_unified(options))
    if options.path is not None:
        print(explain(program, options.path))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(Report(program))
    else:
        print(Report(program))
    return OK


def _demo(options: argparse.Namespace) -> int:
    from .demo import run

    return run(sys.stdout)


def _doctor(options: argparse.Namespace) -> int:
    from .inspect.doctor import diagnose

    found = diagnose()
    print(json.dumps(found.to_dict(), indent=2) if options.json else str(found))
    return OK


if __name__ == "__main__":
    sys.exit(main())
