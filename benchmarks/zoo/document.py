"""docs/models.md and the totals, from the records of a run."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.measure import table
from benchmarks.zoo.catalog import EAGER, LIBRARIES

__all__ = ["COLUMNS", "is_wrong", "render", "shortfall", "totals"]

Record = dict[str, Any]

COLUMNS = ("network", "captured", "integrals", "coverage", "forward error", "gradient error", "run time")
_TOTALS = (
    "library",
    "networks",
    "unified and equal",
    "whole",
    "mixing coverage",
    "softmax blocks found",
    "written out",
    "median run time",
)
# Mixing coverage, and share of the parameters in graphs, below which a network is listed with what is missing.
_COVERED = 0.95

# Of a reason for parts: "eval mode, x: float32[·,·], mask=None: ", a place in a file, the number of a node.
_CALL = re.compile(
    r"^(?:eval|train)(?: mode)?(?: \d+)?[,:] (?:[\w.*]+(?:: (?:container|\w+\[[^\]]*\])|=[^:]+?)(?:, |: ))*"
)
_PLACE = re.compile(r" \[[^\[\]]*:\d+\]")
_NUMBER = re.compile(r"\b([a-z_]+)_\d+\b")
_WHOSE = {"": "unified", "own_": "of the network", "fused_": "of the network with torch's fused attention"}
_LONGEST, _NAMED = 160, 6

_HEAD = """# Models

<!-- Generated from the records of `make zoo` by `make zoo ARGS="--no-run --write"`; do not edit. -->

Every network has random weights and, where it would be large, a smaller configuration; it is unified in eval mode.
*Captured*: as one graph, in parts with Python between them (and the share of the parameters in them), or not at all.
*Coverage*: integrals among the integrals and the position-mixing operators left alone, in what is captured. *Errors*:
relative L2 distance from the original of all outputs, and of the gradients of all parameters together. *Run time*:
unified / original.
`@eager` is the same network with softmax attention written out instead of `scaled_dot_product_attention`.
"""


def is_wrong(record: Record) -> bool:
    """Whether unify failed, or gave a network that computes something else."""
    return record["status"] == "failed" or (record["status"] == "unified" and not record["equal"])


def shortfall(record: Record) -> str:
    """What a network lacks, with the cause; empty where it lacks nothing."""
    if record["status"] != "unified":
        return f"{record['status']}: {record['error']}"
    lacks = []
    if not record["equal"]:
        lacks.append(f"differs by {record['forward_error']:.1e} and {record['gradient_error']:.1e} in the gradients")
        errors = [(record.get(f"{who}error_gradients"), whose) for who, whose in _WHOSE.items()]
        said = ", ".join(f"{error:.1e} {whose}" for error, whose in errors if error is not None)
        lacks += [f"Against float64 the gradients have errors of {said}"] if said else []
    if record["share"] < _COVERED:
        reasons = "; ".join(list(dict.fromkeys(map(_plain, record["reasons"])))[:2])
        lacks.append(f"{record['share']:.0%} of the parameters captured: {reasons}")
    if record["softmax_left"]:
        known: Counter[str] = Counter()
        for reason, number in record["softmax_reasons"]:
            known[_NUMBER.sub(r"\1", _PLACE.sub("", reason))] += number
        reasons = "; ".join(f"{number}× {reason}" for reason, number in known.most_common())
        lacks.append(f"{_plural(record['softmax_left'], 'softmax block')} left: {reasons}")
    elif record["coverage"] < _COVERED:
        found = [f"{number}× `{operator}` ({reason})" for number, operator, reason in record["unmatched"][:3]]
        lacks.append(f"coverage {record['coverage']:.0%}: " + "; ".join(found))
    return ". ".join(lacks)


def render(records: Iterable[Record], known: int, left_out: Mapping[str, int]) -> str:
    """The document.

    Args:
        records: Of every network.
        known: Number of networks in the zoo, those with attention written out not counted.
        left_out: How many of them have no record since they are a ``part`` of one that ran, or the ``twin`` of one.
    """
    ordered = sorted(records, key=lambda record: record["name"].lower())
    done = sum(not record["name"].endswith(EAGER) for record in ordered)
    run_at = Counter(one.get("revision") or "unknown" for one in ordered).most_common()
    where = ", ".join(f"{number} at {revision}" for revision, number in run_at)
    said = (
        f"{done} of the {known} networks of the zoo were run, some in both forms of attention: {len(ordered)} records."
    )
    said += _also(left_out)
    sections = [_HEAD, "## Totals\n", textwrap.fill(f"{said} By revision of the code: {where}.", 120) + "\n"]
    sections += [totals(ordered), ""]
    versions = sorted({f"{name} {version}" for one in ordered for name, version in one.get("versions", {}).items()})
    sections += [textwrap.fill(f"With {', '.join(versions)}.", 120) + "\n"] if versions else []
    for library, own in _by_library(ordered):
        rows = [_row(record) for record in own if record["status"] == "unified"]
        if rows:
            sections += [f"## {library}\n", table(COLUMNS, rows), ""]
    run = [record for record in ordered if record["status"] != "does not run"]
    title = "Networks that fail, differ, keep a softmax block, or have a mixing coverage or a captured share below"
    sections += _causes("What is missing", f"{title} {_COVERED:.0%}.", run)
    sections += _divided(run)
    broken = [record for record in ordered if record["status"] == "does not run"]
    title = "Networks whose own code fails, most often because sizes of the small configuration do not fit together."
    sections += _causes("What does not run", title, broken)
    return "\n".join(sections)


def _also(left_out: Mapping[str, int]) -> str:
    said = ""
    if number := left_out.get("part"):
        said += (
            f" {number} more ran as parts of these: their model type is a tower of another (clip_text_model of clip)."
        )
    if number := left_out.get("twin"):
        said += f" {number} more are other names of these, with the same configuration class."
    return said


def _divided(records: Iterable[Record]) -> list[str]:
    """Why networks are not one graph, and which: by the modules around the parts, whose own Python code runs."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.get("captured", "whole") != "whole":
            for reason in dict.fromkeys(map(_plain, record["reasons"])):
                found.setdefault(reason, []).append(record["name"])
    if not found:
        return []
    said = "The code around the parts runs as Python, since it cannot be captured; a network may have several reasons."
    rows = [
        f"| {_escaped(reason)} | {len(names)} | {', '.join(names[:_NAMED])}{' …' if len(names) > _NAMED else ''} |"
        for reason, names in sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return ["## In parts, and why\n", f"{said}\n", "| cause | networks | which |", "| --- | ---: | --- |", *rows, ""]


def _plain(reason: str) -> str:
    """A reason without the arguments of the call, the place in the code, and advice."""
    text = _PLACE.sub("", _CALL.sub("", reason)).partition("; ")[0]
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def _causes(title: str, text: str, records: Iterable[Record]) -> list[str]:
    lacking = [(record["name"], shortfall(record)) for record in records]
    rows = [f"| {name} | {_escaped(lack)} |" for name, lack in lacking if lack]
    return [f"## {title}\n", f"{text}\n", "| network | cause |", "| --- | --- |", *rows, ""] if rows else []


def totals(records: Iterable[Record]) -> str:
    """A table with one line for each library, and one for all."""
    ordered = list(records)
    groups = [*_by_library(ordered), ("all", ordered)]
    return table(_TOTALS, [_total(name, own) for name, own in groups if own])


def _by_library(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    return [(library, [one for one in records if one["library"] == library]) for library in LIBRARIES]


def _total(name: str, records: Sequence[Record]) -> list[str]:
    run = [record for record in records if record["status"] != "does not run"]
    unified = [record for record in run if record["status"] == "unified"]
    right = [record for record in unified if record["equal"]]
    written_out = [record for record in unified if record["name"].endswith(EAGER)]
    ratios = sorted(record["time_ratio"] for record in unified)
    broken = len(records) - len(run)
    return [
        name,
        f"{len(run)}" + (f" ({broken} more do not run)" if broken else ""),
        _share(len(right), len(run)),
        _share(sum(record["captured"] == "whole" for record in unified), len(run)),
        f"{sum(record['coverage'] for record in unified) / len(unified):.1%}" if unified else "",
        _softmax(unified),
        _softmax(written_out),
        f"{ratios[len(ratios) // 2]:.2f}" if ratios else "",
    ]


def _softmax(records: Sequence[Record]) -> str:
    found = sum(record["softmax_found"] for record in records)
    return _share(found, found + sum(record["softmax_left"] for record in records))


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else ""


def _row(record: Record) -> list[str]:
    captured = record["captured"]
    if captured.endswith("parts"):
        captured += f", {record['share']:.0%}"
    return [
        record["name"].partition("/")[2],
        captured,
        ", ".join(f"{number} {family}" for family, number in Counter(record["families"]).most_common()),
        f"{record['coverage']:.0%}",
        *(_error(record, kind) for kind in ("forward_error", "gradient_error")),
        f"{record['time_ratio']:.2f}",
    ]


def _error(record: Record, kind: str) -> str:
    if record["own_repeat"] > 0:
        return "random"
    return "0" if record[kind] == 0 else f"{record[kind]:.0e}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("<", "&lt;").replace("|", "\\|").split())
