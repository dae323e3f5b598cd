"""``make bench``: every table of README.md, in its order.

python -m benchmarks.run [--quick] [--write]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import capture_time, overhead
from benchmarks.measure import arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run all benchmarks; 1 where any of them missed its bar."""
    options = arguments(__doc__, argv)
    passed_on = [flag for flag, given in (("--quick", options.quick), ("--write", options.write)) if given]
    status = 0
    for benchmark in (overhead, capture_time):
        status |= benchmark.main(passed_on)
        print(flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
