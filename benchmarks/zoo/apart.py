"""Examines each network in a process of its own, forked from one that has imported what all of them need.

The process that forks, ``python -m benchmarks.zoo.apart torch timm``, says when it is ready; then it takes one JSON
line a network, forks, ends what takes too long, and answers twice: which process it is, and how that ended.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.zoo import examine
from benchmarks.zoo.catalog import family_of, library_of

__all__ = ["Examiner", "examiners", "main"]

Record = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
_ENVIRONMENT = _ONE_THREAD | {"HF_HUB_OFFLINE": "1"}
_IMPORTED = {
    "torch": ("torch._dynamo", "torch._inductor.config", "sympy"),
    "torchvision": ("torchvision",),
    "timm": ("timm",),
    "transformers": (
        "transformers.modeling_utils",
        "transformers.masking_utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
    ),
}
_NAP = 0.02


class Examiner:
    """Examines one network after the other; the process that forks is started at the first, and again where it died.

    Args:
        libraries: Whose networks; they are imported beforehand.
    """

    def __init__(self, libraries: Sequence[str]) -> None:
        self._libraries = libraries
        self._server: subprocess.Popen[str] | None = None

    def __call__(self, name: str, seconds: float) -> Record:
        """The record of one network; where it is ended, what is known until then.

        Args:
            name: As in ``catalog.names``.
            seconds: Time limit.

        Raises:
            RuntimeError: The process that forks does not start, or died twice; with what it said.
        """
        record: Record = {"name": name, "library": library_of(name), "family": family_of(name)}
        with tempfile.TemporaryDirectory() as folder:
            target, said = Path(folder) / "record.json", Path(folder) / "said"
            begun = time.perf_counter()
            ended = self._ended({"name": name, "target": str(target), "said": str(said), "seconds": seconds})
            took = round(time.perf_counter() - begun, 1)
            if target.exists():
                text = target.read_text(encoding="utf-8")
                record |= json.loads(text) if text else {}
            last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-2:] if said.exists() else []
        if "status" not in record:
            stage = record.get("stage", "start")
            status = "does not run" if stage in ("build", "original") else "failed"
            record |= {"status": status, "error": f"{_how(ended, last, seconds)} at the stage: {stage}"}
        return record | {"wall_seconds": took, "processor_seconds": ended["cpu"]}

    def close(self) -> None:
        """End the process that forks."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
            self._server = None

    def __enter__(self) -> Examiner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ended(self, order: dict[str, Any]) -> dict[str, Any]:
        """How the process ended; a second one is begun where the process that forks died."""
        for _ in range(2):
            server = self._server or self._started()
            assert server.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                server.stdin.write(json.dumps(order) + "\n")
                server.stdin.flush()
            begun, ended = _answer(server), _answer(server)
            if ended:
                return ended
            self.close()
            if begun:  # it has no parent any more
                with contextlib.suppress(ProcessLookupError):
                    os.kill(begun["process"], signal.SIGKILL)
        raise RuntimeError(f"the process that forks died twice at {order['name']}")

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "benchmarks.zoo.apart", *self._libraries]
        pipe = subprocess.PIPE
        environment = os.environ | _ENVIRONMENT
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            server = subprocess.Popen(
                command, cwd=_ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=said, text=True
            )
            self._server = server
            if not _answer(server):
                self.close()
                said.seek(0)
                raise RuntimeError(f"the process that forks does not start: {said.read().strip()[-2000:]}")
        return server


@contextlib.contextmanager
def examiners(number: int, libraries: Sequence[str]) -> Iterator[queue.SimpleQueue[Examiner]]:
    """As many of them, to be taken and put back."""
    idle: queue.SimpleQueue[Examiner] = queue.SimpleQueue()
    with contextlib.ExitStack() as closing:
        for _ in range(number):
            idle.put(closing.enter_context(Examiner(libraries)))
        yield idle


def _answer(server: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line; empty where the process died."""
    assert server.stdout is not None
    try:
        found: dict[str, Any] = json.loads(server.stdout.readline())
    except json.JSONDecodeError:
        return {}
    return found


def _how(ended: dict[str, Any], last: Sequence[str], seconds: float) -> str:
    """``KeyboardInterrupt`` where the user ended it."""
    code = ended["code"]
    if ended["late"]:
        return f"time limit of {seconds:g} s"
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code < 0:
        return f"ended by {signal.Signals(-code).name}" + (", out of memory?" if code == -signal.SIGKILL else "")
    return f"exit code {code}: " + " ".join(last)


# ── The process that forks ───────────────────────────────────────────────────────────────────────────────────────────


def main(libraries: Sequence[str]) -> int:
    """Fork for every line of the standard input, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what is printed is no answer
        _warm(libraries)
        _say(answers, ready=True)
        for line in sys.stdin:
            order = json.loads(line)
            process = os.fork()
            if process == 0:
                os.close(answers.fileno())
                _examine(order["name"], order["target"], order["said"])
            _say(answers, process=process)
            _say(answers, **_waited(process, order["seconds"]))
    return 0


def _warm(libraries: Sequence[str]) -> None:
    """Import what takes long, and go once through what is imported where it is needed."""
    import torch

    import itnet
    from tests.foreign.registry import available, prepare

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for library in libraries:
        prepare(library)
        if available(library):
            for module in _IMPORTED[library]:
                importlib.import_module(module)
    if libraries:
        itnet.unify(torch.nn.Linear(2, 2), torch.zeros(3, 2))
    examine.revision()
    gc.collect()
    gc.freeze()  # or a collection after the fork copies every page


def _examine(name: str, target: str, said: str) -> None:
    """In the forked process; does not return."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        code = examine.main([name, target])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _waited(process: int, seconds: float) -> dict[str, Any]:
    """Exit code, processor time, and whether it took too long.

    That is counted in naps: while a run is stopped, no time passes for it.
    """
    late = True
    for _ in range(int(seconds / _NAP)):
        found, status, used = os.wait4(process, os.WNOHANG)
        if found:
            late = False
            break
        time.sleep(_NAP)
    if late:
        os.kill(process, signal.SIGKILL)
        _, status, used = os.wait4(process, 0)
    return {"code": os.waitstatus_to_exitcode(status), "late": late, "cpu": round(used.ru_utime + used.ru_stime, 1)}


def _say(answers: IO[str], **answer: Any) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
