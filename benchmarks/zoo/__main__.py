"""Unify the networks of torch.nn, torchvision, timm and transformers, and write down what was recognised.

python -m benchmarks.zoo [--quick | --sample | --only NAME …] [--shard 1/4] [--jobs 2] [--write | --check]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo import catalog, document, kinds
from benchmarks.zoo.run import read, run
from tests.documents import ROOT

__all__ = ["main"]

Record = dict[str, Any]

# What two processes get through in about forty minutes.
_SAMPLE = 150
_DOCUMENT = ROOT / "docs" / "models.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Examine what was asked for; 1 where a network failed, computes something else, or the page is to be refreshed."""
    options = _arguments(argv)
    warnings.simplefilter("ignore")
    names = _chosen(options)
    if options.list:
        print("\n".join(names))
        return 0
    if not options.no_run:
        run(
            names,
            options.file,
            jobs=options.jobs,
            seconds=options.limit,
            again=options.again or options.quick,
            both=options.attention == "both",
            needless=(lambda name, records: False) if options.only or options.quick else _needless,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    records = read([options.file, *options.merge])
    asked = {*names, *(name + catalog.EAGER for name in names)}
    shown = [record for name, record in records.items() if name in asked]
    if options.write:
        if options.quick:
            page = document.with_quick(_DOCUMENT.read_text(encoding="utf-8"), shown)
        else:
            page = document.render(records.values(), len(catalog.names()), _left_out(records))
        _DOCUMENT.write_text(page, encoding="utf-8")
        print(f"{_DOCUMENT.relative_to(ROOT)}: {len(shown if options.quick else records)} records")
    print(document.totals(shown))
    wrong = [f"{record['name']}: {document.shortfall(record)}" for record in shown if document.is_wrong(record)]
    if options.check and (changed := document.outdated(_DOCUMENT.read_text(encoding="utf-8"), shown)):
        wrong += [*changed, f"{_DOCUMENT.name} is out of date; if that is as it should be: make zoo-quick ARGS=--write"]
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


def _chosen(options: argparse.Namespace) -> list[str]:
    if options.only:
        chosen = [name for wanted in options.only for name in _called(wanted)]
    elif options.quick:
        chosen = list(catalog.QUICK)
    else:
        chosen = sorted(catalog.names(), key=_depth)
        if options.sample:
            chosen = catalog.sample(_SAMPLE, [name for name in chosen if _depth(name) == 0])
    if options.library:
        chosen = [name for name in chosen if catalog.library_of(name) in options.library]
    index, count = options.shard
    return chosen[index - 1 :: count]


def _called(wanted: str) -> list[str]:
    plain = wanted.removesuffix(catalog.EAGER)
    found = [name for name in catalog.names() if plain in (name, name.partition("/")[2])]
    if not found:
        sys.exit(f"no network is called {wanted}; --list shows all")
    return [name + wanted[len(plain) :] for name in found]


def _depth(name: str) -> int:
    """Networks before those that are parts of them."""
    library, _, kind = name.partition("/")
    return len(kinds.wholes().get(kind, ())) if library == "transformers" else 0


def _needless(name: str, records: Mapping[str, Record]) -> bool:
    """Whether a network ran as part of another one, or may yet."""
    library, _, kind = name.partition("/")
    if library != "transformers":
        return False
    plain = kind.removesuffix(catalog.EAGER)
    found = kinds.state(plain, records, kind[len(plain) :])
    return found in ("part", "twin") or (found == "wait" and plain == kind)


def _left_out(records: Mapping[str, Record]) -> dict[str, int]:
    """How many model types have no record, by why."""
    missing = (name for name in catalog.names("transformers") if name not in records)
    return Counter(kinds.state(name.partition("/")[2], records) for name in missing)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard such as 1/4")
    return int(index), int(count)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=(__doc__ or "").split("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help=f"{len(catalog.QUICK)} networks unlike each other")
    which.add_argument("--sample", action="store_true", help="an even sample of each library, about forty minutes")
    which.add_argument("--only", metavar="NAME", nargs="+", help="these, with their library or without: timm/resnet18")
    parser.add_argument("--library", nargs="+", choices=catalog.LIBRARIES, help="networks of these libraries only")
    parser.add_argument("--shard", metavar="K/N", type=_shard, default=(1, 1), help="every N-th network from the K-th")
    parser.add_argument("--attention", choices=("both", "sdpa"), default="both", help="also written out, or fused only")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (%(default)s)")
    parser.add_argument("--limit", metavar="S", type=float, default=300, help="seconds for each network (%(default)s)")
    parser.add_argument("--again", action="store_true", help="examine those again that have a record, as --quick does")
    parser.add_argument("--file", type=Path, default=ROOT / "out" / "zoo.jsonl", help="records, one a line")
    parser.add_argument("--merge", metavar="FILE", type=Path, nargs="+", default=[], help="records of other shards")
    parser.add_argument("--write", action="store_true", help="write docs/models.md from all records, or its quick part")
    parser.add_argument("--check", action="store_true", help="with --quick: fail where docs/models.md says otherwise")
    parser.add_argument("--no-run", action="store_true", help="examine nothing: totals of the records there are")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args(argv)
    if options.check and not options.quick:
        parser.error("--check is of the quick part of docs/models.md: give --quick too")
    return options


if __name__ == "__main__":
    sys.exit(main())
