"""``make gpu``: on a CUDA device the tests marked ``gpu``, the overhead table, loops as written and solved at once,
learned kernels.

python -m benchmarks.gpu [--quick]
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Sequence

import torch

from benchmarks.measure import arguments, machine, table


def main(argv: Sequence[str] | None = None) -> int:
    """Say plainly where there is no GPU; otherwise test, then measure."""
    options = arguments(__doc__, argv)
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        print(f"No CUDA device: torch {torch.__version__} is {built}. Nothing was tested and nothing was measured.")
        return 0
    status = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu"]).returncode
    if status == 5:  # pytest's word for "no test was selected"
        print("There are no tests marked gpu.")
        status = 0
    from benchmarks import kernel, loops, newton, overhead

    warnings.simplefilter("ignore")
    found = overhead.rows(compiled=not options.quick, seconds=5.0 if options.quick else 20.0, device="cuda")
    print(f"\nTime of the original and of the unified model ({machine()}, batch 2)\n")
    print(table(overhead.HEADER, found))
    recurrent = [loops.row(name, 256, 0.5, 0, device="cuda") for name in loops.LOOPS]
    print(f"\nLoops of 256 steps, batch {loops.BATCH}, width {loops.WIDTH} ({machine()})\n")
    print(table([*loops.HEADER, *loops.MORE], recurrent))
    learned = [line for length in (1024, 4096) for line in kernel.rows(length, 5.0, device="cuda")]
    print(f"\nA learned kernel ({machine()})\n")
    print(table(kernel.HEADER, learned))
    at_once = [line for length in (256, 2048) for line in newton.rows(length, 5.0, device="cuda")]
    print(f"\nLoops of 256 and 2,048 steps, all steps at once ({machine()})\n")
    print(table(newton.HEADER, at_once))
    return status or int(any(line[-1] != "yes" for line in found))


if __name__ == "__main__":
    sys.exit(main())
