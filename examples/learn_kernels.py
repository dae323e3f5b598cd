"""One layer learns a convolution, a content lookup and a running sum from examples alone, and shows its kernels.

    pip install "itnet-compiler[cpu]"         # and matplotlib, for a picture instead of text
    python examples/learn_kernels.py          # about two minutes; --quick shows the way in seconds

The same integral transform, from scratch each time: nothing in it says that the kernel is local, or that it compares
features, or that it looks back only. The examples of each task are drawn anew in every step.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from itnet.nn import IntegralTransform
from torch import Tensor, nn

LENGTH, SYMBOLS, DIM = 32, 8, 16
# Characters for a weight from 0 on.
SHADES = " .:-=+*#%@"

Examples = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def convolution(batch: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random signal, and its convolution with seven taps that are random but always the same."""
    taps = torch.randn(1, 1, 7, generator=torch.Generator().manual_seed(5))
    x = torch.randn(batch, 1, LENGTH, generator=draw)
    return x.mT, F.conv1d(x, taps, padding=3).mT


def lookup(batch: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions with a key, a question and a number; the sum of the numbers whose key is the question."""
    keys, questions = torch.randint(SYMBOLS, (2, batch, LENGTH), generator=draw)
    numbers = torch.randn(batch, LENGTH, 1, generator=draw)
    x = torch.cat([F.one_hot(keys, SYMBOLS), F.one_hot(questions, SYMBOLS), numbers], -1)
    return x, (questions[:, :, None] == keys[:, None]).float() @ numbers


def running_sum(batch: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random signal, and the sum of all that came before."""
    x = torch.randn(batch, LENGTH, 1, generator=draw)
    return x, x.cumsum(1)


# Each with the error to be under after a few steps: what is to be looked up shows late.
TASKS: dict[str, tuple[Examples, float]] = {
    "convolution": (convolution, 0.5),
    "content lookup": (lookup, 1.0),
    "running sum": (running_sum, 0.5),
}


def network(features: int) -> nn.Sequential:
    """The layer between two linear maps, the same for every task.

    The output is to be linear in the source, amplitudes included, so heads are not normalised; sums, not means, are
    sought (counting measure), and neighbours are to be told apart (half a period from one position to the next).
    """
    layer = IntegralTransform(DIM, heads=4, depth=2, head_norm=False, measure="counting", frequency=(LENGTH - 1) / 2)
    return nn.Sequential(nn.Linear(features, DIM), layer, nn.Linear(DIM, 1))


def error(model: nn.Module, examples: tuple[Tensor, Tensor]) -> Tensor:
    """Relative L2 error."""
    x, y = examples
    return (model(x) - y).norm() / y.norm()


def learn(task: Examples, steps: int) -> tuple[nn.Sequential, float]:
    """The network after training, and its error on examples that it has not seen."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    model = network(task(1, draw)[0].shape[-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps, pct_start=0.1, cycle_momentum=False)
    for _ in range(steps):
        optimizer.zero_grad()
        error(model, task(8, draw)).square().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return model, float(error(model, task(64, torch.Generator().manual_seed(2))))


def weights(model: nn.Sequential, x: Tensor) -> Tensor:
    """How much each position counts for each other: the derivative of outputs by the last feature, (N, N)."""
    rows = torch.autograd.functional.jacobian(lambda given: model(given)[0, :, 0], x)
    return rows[:, 0, :, -1]


def show(kernels: dict[str, Tensor], picture: str) -> None:
    """Save a picture where matplotlib is installed, else print the kernels in characters."""
    if importlib.util.find_spec("matplotlib") is None:
        for name, matrix in kernels.items():
            size = matrix.abs() / matrix.abs().max()
            print(f"\n{name}: weight of each source (across) for each query (down)")
            print("\n".join("".join(SHADES[int(9.99 * n)] for n in row) for row in size.tolist()))
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(kernels), 4), layout="constrained")
    for place, (name, matrix) in zip(figure.subplots(1, len(kernels)), kernels.items(), strict=True):
        limit = float(matrix.abs().max())
        place.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit)
        place.set(title=name, xlabel="source", ylabel="query")
    figure.savefig(picture)
    print(f"\nthe learned kernels: {picture}")


def main(argv: Sequence[str] | None = None) -> None:
    """Learn every task and show what was learned."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps: seconds, and large errors")
    parser.add_argument("--picture", default="learned_kernels.png", help="where to save the picture")
    options = parser.parse_args(argv)
    steps = 100 if options.quick else 2000
    kernels = {}
    for name, (task, early) in TASKS.items():
        model, found = learn(task, steps)
        print(f"{name}: relative error {100 * found:.2f} % after {steps} steps", flush=True)
        assert found < (early if options.quick else 0.01)
        kernels[name] = weights(model, task(1, torch.Generator().manual_seed(3))[0])
    show(kernels, options.picture)


if __name__ == "__main__":
    main()
