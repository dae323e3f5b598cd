"""Goes through the zoo, each network in a process of its own, and keeps one JSON line of each.

Networks that have a line are skipped, so that a run can be broken off and go on later, or be shared among machines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.zoo.catalog import EAGER, family_of, library_of

__all__ = ["examine_apart", "read", "run"]

Record = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]
_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def read(files: Iterable[Path]) -> dict[str, Record]:
    """The latest record of each network; a line that was broken off is passed over."""
    found: dict[str, Record] = {}
    for line in (line for file in files if file.exists() for line in file.read_text(encoding="utf-8").splitlines()):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[record["name"]] = record
    return found


def run(
    names: Sequence[str],
    file: Path,
    *,
    jobs: int = 2,
    seconds: float = 300.0,
    again: bool = False,
    both: bool = True,
    say: Callable[[str], None] = print,
    examine: Callable[[str, float], Record] | None = None,
) -> None:
    """Examine networks that ``file`` has no record of, and append theirs.

    Args:
        names: Networks to examine.
        file: JSON lines.
        jobs: Processes at a time.
        seconds: Time limit of each network.
        again: Examine those with a record too.
        both: After a network whose attention is the fused operator, examine it with attention written out.
        say: Takes a line of progress for each network.
        examine: Instead of ``examine_apart``.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and file.read_bytes()[-1:] not in (b"", b"\n"):
        with file.open("a", encoding="utf-8") as lines:
            lines.write("\n")  # the last run was ended while it wrote
    known = {} if again else read([file])
    writing, stop = threading.Lock(), threading.Event()
    done = 0

    def work(name: str) -> None:
        nonlocal done
        if stop.is_set():
            return
        record = known.get(name) or (examine or examine_apart)(name, seconds)
        with writing:
            done += not name.endswith(EAGER)
            if name not in known:
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(record) + "\n")
                say(f"[{done}/{len(names)}] {_progress(record)}")
        if both and record.get("attention") == "sdpa" and EAGER not in name and record["status"] != "does not run":
            work(name + EAGER)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for _ in pool.map(work, names):
                pass
        finally:
            stop.set()


def _progress(record: Record) -> str:
    took = f"{record.get('wall_seconds', 0):.0f} s"
    if record["status"] != "unified":
        return f"{record['name']}: {record['status']}: {record['error']} ({took})"
    different = (
        "" if record["equal"] else f", DIFFERENT by {max(record['forward_error'], record['gradient_error']):.1e}"
    )
    families = ", ".join(f"{number} {family}" for family, number in record["families"].items()) or "no integrals"
    return f"{record['name']}: {record['captured']}, {families}, {record['coverage']:.0%}{different} ({took})"


def examine_apart(name: str, seconds: float) -> Record:
    """The record of one network from a process of its own; where it is ended, what is known until then."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "record.json"
        command = [sys.executable, "-m", "benchmarks.zoo.examine", name, str(target)]
        begun = time.perf_counter()
        ended = _ended(command, seconds)
        took = round(time.perf_counter() - begun, 1)
        record: Record = {"name": name, "library": library_of(name), "family": family_of(name)}
        if target.exists():
            text = target.read_text(encoding="utf-8")
            record |= json.loads(text) if text else {}
    if "status" not in record:
        stage = record.get("stage", "start")
        status = "does not run" if stage in ("build", "original") else "failed"
        record |= {"status": status, "error": f"{ended} at the stage: {stage}"}
    return record | {"wall_seconds": took}


def _ended(command: Sequence[str], seconds: float) -> str:
    """Run ``command`` no longer than that; says how it ended. ``KeyboardInterrupt`` where the user ended it."""
    quiet = subprocess.DEVNULL
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=_ROOT, env=os.environ | _THREADS, stdin=quiet, stdout=quiet, stderr=said
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"time limit of {seconds:g} s"
        finally:
            process.kill()
            process.wait()
        if code == -signal.SIGINT:
            raise KeyboardInterrupt
        if code < 0:
            return f"ended by {signal.Signals(-code).name}" + (", out of memory?" if code == -signal.SIGKILL else "")
        said.seek(0)
        return f"exit code {code}: " + " ".join(said.read().decode(errors="replace").strip().splitlines()[-2:])
