"""Library lowering of ``Loop``: one Python function that runs the steps through the operators' own bindings."""

from __future__ import annotations

import re
from itertools import count
from typing import Any

import torch

from ...ir.body import Call, Progression, Ref, function_named, refs_of
from ...ir.kernel import Spec
from ...ir.loop import Loop
from ..base import Lowered
from ..bindings import binding

__all__ = ["KERNEL", "lower"]

KERNEL = Loop


def lower(spec: Spec) -> Lowered:
    """A ``for`` loop over the steps; values die where the original's would."""
    kernel = spec.kernel
    assert isinstance(kernel, Loop)
    namespace: dict[str, Any] = {"torch": torch}
    source = _Source(kernel, namespace).write()
    scope = dict(namespace)
    exec(compile(source, "<itnet loop>", "exec"), scope)
    return Lowered(spec.operands, f"run_loop({', '.join(spec.operands)})", {"run_loop": scope["loop"]}, text=source)


class _Source:
    def __init__(self, kernel: Loop, namespace: dict[str, Any]) -> None:
        self.kernel, self.body, self.namespace = kernel, kernel.body, namespace
        self.counted = False
        self.own: dict[Any, int] = {}

    def write(self) -> str:
        """The text of the function."""
        body = self.body
        inside: list[str] = []
        dying = self._last_uses()
        for index, call in enumerate(body.calls):
            inside.append(f"v{index} = {self._call(call)}")
            if dead := dying.get(index):
                inside[-1] += f"; {' = '.join(dead)} = None"
        inside += [f"keep{index}({self._text(ref)})" for index, ref in enumerate(body.outputs)]
        if body.carried:
            names = ", ".join(f"h{index}" for index in range(len(body.carried)))
            inside.append(f"{names} = {', '.join(self._text(ref) for ref in body.carried)}")
        lines = ["def loop(initial, inputs, shared):"]
        lines += [f"    {name}, = {role}" for role, name in self._unpacked()]
        lines += [f"    outputs{index} = []; keep{index} = outputs{index}.append" for index in range(len(body.outputs))]
        lines += [f"    {self._header()}", *(f"        {line}" for line in inside or ["pass"])]
        stacks = [f"stack(outputs{index}, {axis})" for index, axis in enumerate(self.kernel.stacked)]
        results = [*stacks, *(self._final(ref) for ref in body.finals)]
        self.namespace["stack"] = torch.stack
        return "\n".join([*lines, f"    return ({', '.join(results)},)"]) + "\n"

    def _unpacked(self) -> list[tuple[str, str]]:
        roles = {
            "initial": [f"h{index}" for index in range(len(self.body.carried))],
            "inputs": [f"inputs{index}" for index in range(len(self.kernel.axes))],
            "shared": [f"w{index}" for index in range(self._count("shared"))],
        }
        return [(role, ", ".join(names)) for role, names in roles.items() if names]

    def _count(self, role: str) -> int:
        return len(dict(self.kernel.shapes)[role])

    def _header(self) -> str:
        steps = [f"inputs{index}.unbind({axis})" for index, axis in enumerate(self.kernel.axes)]
        names = [f"x{index}" for index in range(len(steps))]
        if self.kernel.length is not None:
            names, steps = ["t", *names], [f"range({self.kernel.length})", *steps]
        elif self.counted:
            names, steps = ["t", *names], ["count()", *steps]
            self.namespace["count"] = count
        source = steps[0] if len(steps) == 1 else f"zip({', '.join(steps)})"
        return f"for {', '.join(names)} in {source}:"

    def _last_uses(self) -> dict[int, list[str]]:
        """Call → locals that nothing needs after it."""
        last: dict[int, int] = {}
        for index, call in enumerate(self.body.calls):
            last |= {ref.index: index for ref in refs_of(call) if ref.kind == "local"}
        kept = {ref.index for ref in (*self.body.carried, *self.body.outputs, *self.body.finals) if ref.kind == "local"}
        found: dict[int, list[str]] = {}
        for local, index in last.items():
            if local not in kept:
                found.setdefault(index, []).append(f"v{local}")
        return found

    def _final(self, ref: Ref) -> str:
        """A value of the last step, after the carried values have moved on."""
        if ref.kind == "carry":
            raise ValueError("a final is a value made in the last step")
        return self._text(ref)

    def _call(self, call: Call) -> str:
        if call.target == "getitem":
            return f"{self._text(call.args[0])}[{self._text(call.args[1])}]"
        function = binding(function_named(call.target))
        if isinstance(call.target, str):
            name = "do_" + re.sub(r"\W", "_", call.target.split(".", 1)[1])
        else:  # several may have one name
            own = self.own.setdefault(call.target, len(self.own))
            name = f"own{own}_" + re.sub(r"\W", "_", call.name)
        self.namespace[name] = function
        given = [self._text(value) for value in call.args] + [
            f"{key}={self._text(value)}" for key, value in call.kwargs
        ]
        return f"{name}({', '.join(given)})"

    def _text(self, value: Any) -> str:
        if isinstance(value, Ref):
            return {"carry": "h", "step": "x", "shared": "w", "local": "v"}[value.kind] + str(value.index)
        if isinstance(value, Progression):
            self.counted = True
            return f"({value.source('t')})"
        if isinstance(value, tuple):
            return f"[{', '.join(map(self._text, value))}]"
        if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
            return repr(value)
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        return self._constant(value)

    def _constant(self, value: Any) -> str:
        name = "constant_" + re.sub(r"\W", "_", str(value))
        self.namespace[name] = value
        return name
