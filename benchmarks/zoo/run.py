"""Goes through the zoo, each network in a process of its own, and keeps one JSON line of each.

Networks that have a line are skipped, so that a run can be broken off and go on later, or be shared among machines.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.zoo.apart import examiners
from benchmarks.zoo.catalog import EAGER, library_of

__all__ = ["read", "run"]

Record = dict[str, Any]


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
    needless: Callable[[str, Mapping[str, Record]], bool] = lambda name, records: False,
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
        needless: Whether a network is left out, given the records so far.
        say: Takes a line of progress for each network.
        examine: Instead of a process for each network.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and file.read_bytes()[-1:] not in (b"", b"\n"):
        with file.open("a", encoding="utf-8") as lines:
            lines.write("\n")  # the last run was ended while it wrote
    records = {} if again else read([file])
    writing, stop = threading.Lock(), threading.Event()
    done = 0

    def work(name: str) -> None:
        nonlocal done
        known = records.get(name)
        if stop.is_set() or (known is None and needless(name, records)):
            return
        record = known or take(name)
        with writing:
            done += not name.endswith(EAGER)
            if known is None:
                records[name] = record
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(record) + "\n")
                say(f"[{done}/{len(names)}] {_progress(record)}")
        if both and record.get("attention") == "sdpa" and EAGER not in name and record["status"] != "does not run":
            work(name + EAGER)

    def take(name: str) -> Record:
        if examine is not None:
            return examine(name, seconds)
        examiner = idle.get()
        try:
            return examiner(name, seconds)
        finally:
            idle.put(examiner)

    with examiners(jobs, sorted({library_of(name) for name in names})) as idle, ThreadPoolExecutor(jobs) as pool:
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
