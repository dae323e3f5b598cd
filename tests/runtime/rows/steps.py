"""Steps of loops over rows, as they are kept in nodes, with operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from itnet_compiler.ir.body import Body, Call, Ref
from itnet_compiler.ir.loop import Loop

__all__ = ["STEPS", "Operands", "example", "loop"]

Operands = dict[str, list[Tensor]]


def h(index: int) -> Ref:
    return Ref("carry", index)


def x(index: int) -> Ref:
    return Ref("step", index)


def w(index: int) -> Ref:
    return Ref("shared", index)


def v(index: int) -> Ref:
    return Ref("local", index)


def call(name: str, *args: Any, **kwargs: Any) -> Call:
    return Call(name if name == "getitem" else f"aten.{name}", args, tuple(kwargs.items()))


# Name → (step, last axes of initial, inputs and shared; a shared operand in brackets has the axes of rows too).
STEPS: dict[str, tuple[Body, list[Any], list[Any], list[Any]]] = {
    "sine": (
        Body(
            (call("mul.Tensor", h(0), 0.9), call("add.Tensor", v(0), x(0)), call("sin.default", v(1))),
            carried=(v(2),),
            outputs=(v(2),),
            finals=(v(2),),
        ),
        [(19,)],
        [(19,)],
        [],
    ),
    "normalised": (
        Body(
            (
                call("linear.default", h(0), w(0), w(1)),
                call("add.Tensor", x(0), v(0)),
                call("layer_norm.default", v(1), (34,), w(2), w(3), 1e-5, False),
                call("chunk.default", v(2), 2, -1),
                call("getitem", v(3), 0),
                call("getitem", v(3), 1),
                call("sigmoid.default", v(4)),
                call("tanh.default", v(5)),
                call("mul.Tensor", v(6), h(1)),
                call("add.Tensor", v(8), v(7)),
                call("gelu.default", v(9), approximate="tanh"),
            ),
            carried=(v(10), v(9)),
            outputs=(v(10),),
            finals=(v(9),),
        ),
        [(17,), (17,)],
        [(34,)],
        [(34, 17), (34,), (34,), (34,)],
    ),
    "swapped": (
        Body(
            (
                call("matmul.default", h(1), w(0)),
                call("add.Tensor", v(0), x(0)),
                call("tanh.default", v(1)),
                call("mul.Tensor", v(2), w(1)),
            ),
            carried=(h(1), v(3)),
            outputs=(h(0), v(2)),
        ),
        [(5,), (5,)],
        [(5,)],
        [(5, 5), (5,)],
    ),
    "joined": (
        Body(
            (
                call("cat.default", (x(0), h(0)), -1),
                call("linear.default", v(0), w(0)),
                call("silu.default", v(1)),
                call("slice.Tensor", v(2), 1, 0, 33),
                call("slice.Tensor", v(2), 1, 33, 34),
                call("mul.Tensor", v(3), v(4)),
                call("add.Tensor", v(5), w(1)),
                call("relu.default", v(6)),
            ),
            carried=(v(7),),
            outputs=(v(7), v(4)),
        ),
        [(33,)],
        [(4,)],
        [(34, 37), [33]],
    ),
}


def example(name: str, batch: int, length: int, axis: int, dtype: torch.dtype = torch.float32) -> Operands:
    """Random operands of a step, time along ``axis`` of the inputs."""
    _, *sizes = STEPS[name]
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (value * shape[-1] ** -0.5 if len(shape) > 1 else value).to(dtype)

    initial = [draw((batch, *shape)) for shape in sizes[0]]
    inputs = [draw((length, batch, *shape)).movedim(0, axis) for shape in sizes[1]]
    shared = [draw((batch, *shape) if isinstance(shape, list) else shape) for shape in sizes[2]]
    return {"initial": initial, "inputs": inputs, "shared": shared}


def loop(name: str, given: Operands, axis: int) -> Loop:
    """The kernel of a step for operands like these."""
    body = STEPS[name][0]
    shapes = tuple((role, tuple((tuple(one.shape), "float") for one in group)) for role, group in given.items())
    return Loop(body, None, (axis,) * len(given["inputs"]), (axis,) * len(body.outputs), shapes)
