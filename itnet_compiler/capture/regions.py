"""Regions: ``with torch.no_grad():``, ``torch.enable_grad()``, ``torch.autocast(…)`` blocks within a forward.

``torch.export`` turns some of them into higher-order operators with bodies, and loses others: a block that enables
gradients where they are enabled while tracing, any block of gradients inside one of autocast. So the blocks are
recorded as the model is traced: each node carries those around it as its mode, and the bodies are put back in line.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.proxy import TracerBase

from ..ir.mode import Autocast, Block, Grad, Inference, Mode
from .source_frames import user_frames

__all__ = ["inline_regions", "modes_recorded"]


class _Recording(threading.local):
    """What this thread records.

    Attributes:
        depth: How many ``modes_recorded()`` this thread is in.
        mode: Blocks that the traced code is in.
        grad: Whether gradients were enabled when tracing began.
        count: Autocast blocks met.
    """

    depth = 0
    mode: Mode = ()
    grad = True
    count = 0


_here = _Recording()
_lock = threading.Lock()
_everywhere = 0
_originals: list[tuple[type, str, Any]] = []


@contextlib.contextmanager
def modes_recorded() -> Iterator[None]:
    """Give every node that this thread records the mode that its operator is called in, as ``meta["mode"]``.

    The context managers are patched for as long as any thread is inside; other threads only pass through.
    """
    global _everywhere
    before = _here.mode, _here.grad, _here.count
    with _lock:
        if _everywhere == 0:
            _patch()
        _everywhere += 1
    _here.depth += 1
    _here.mode, _here.grad, _here.count = (), torch.is_grad_enabled(), 0
    try:
        yield
    finally:
        _here.depth -= 1
        _here.mode, _here.grad, _here.count = before
        with _lock:
            _everywhere -= 1
            if _everywhere == 0:
                _restore()


def _patch() -> None:
    _wrap(TracerBase, "create_node", _stamped)
    _wrap(torch.set_grad_enabled, "__init__", _switched)
    _wrap(torch.set_grad_enabled, "__call__", _left)  # as a decorator it changes nothing yet
    _wrap(torch.autocast, "__init__", _cache_noted)
    blocks: tuple[tuple[type, Callable[[Any], Block]], ...] = (
        (torch.no_grad, lambda manager: Grad(False)),
        (torch.enable_grad, lambda manager: Grad(True)),
        (torch.set_grad_enabled, lambda manager: Grad(manager.mode)),
        (torch.inference_mode, lambda manager: Inference(manager.mode)),
        (torch.autocast, _autocast),
    )
    for kind, block in blocks:
        _wrap(kind, "__enter__", functools.partial(_entered, block))
        _wrap(kind, "__exit__", _left)


def _restore() -> None:
    while _originals:
        owner, name, original = _originals.pop()
        setattr(owner, name, original)


def _wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Replace a method by ``around(method, self, *args, **kwargs)`` in threads that record."""
    original = owner.__dict__[name]

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _here.depth:
            return original(self, *args, **kwargs)
        return around(original, self, *args, **kwargs)

    _originals.append((owner, name, original))
    setattr(owner, name, method)


def _stamped(original: Callable[..., Any], tracer: Any, *args: Any, **kwargs: Any) -> Node:
    with_source, tracer.record_stack_traces = tracer.record_stack_traces, False
    try:
        node: Node = original(tracer, *args, **kwargs)
    finally:
        tracer.record_stack_traces = with_source
    node.meta["mode"] = _here.mode
    if with_source and not node.stack_trace:
        node.stack_trace = user_frames()
    return node


def _entered(block: Callable[[Any], Block], original: Callable[..., Any], manager: Any) -> Any:
    # set_grad_enabled acts when it is made; what it will go back to is what was before.
    before = manager.__dict__.setdefault("_mode_before", _here.mode)
    result = original(manager)
    _here.mode = _inside(before, block(manager))
    return result


def _left(original: Callable[..., Any], manager: Any, *args: Any) -> Any:
    result = original(manager, *args)
    _here.mode = manager.__dict__.pop("_mode_before", _here.mode)
    return result


def _switched(original: Callable[..., Any], manager: Any, mode: bool) -> None:
    """``torch.set_grad_enabled(flag)`` as a statement; going back to what the caller had is no block at all."""
    manager._mode_before = _here.mode
    original(manager, mode)
    others = tuple(block for block in _here.mode if not isinstance(block, Grad))
    _here.mode = others if mode == _here.grad else _inside(_here.mode, Grad(mode))


def _cache_noted(original: Callable[..., Any], manager: Any, *args: Any, **kwargs: Any) -> None:
    """Tracing disables the cache for itself; what counts is what the model asks for."""
    original(manager, *args, **kwargs)
    manager._cache_given = args[3] if len(args) > 3 else kwargs.get("cache_enabled")


def _autocast(manager: Any) -> Autocast:
    _here.count += 1
    cache = manager.__dict__.get("_cache_given", manager._cache_enabled)
    return Autocast(manager.device, manager.fast_dtype, manager._enabled, cache, _here.count)


def _inside(around: Mode, block: Block) -> Mode:
    """``block`` within ``around``; the same where it changes nothing."""
    grads = [other for other in around if not isinstance(other, Autocast)]
    return around if grads and grads[-1] == block else (*around, block)


def inline_regions(module: GraphModule) -> None:
    """Put the bodies of ``no_grad`` and ``autocast`` regions in line, nested ones too; other bodies stay bodies.

    ``module`` is as exported under ``modes_recorded``. A ``get_attr`` within a body (the branches of a ``cond``) is
    given its path from ``module``.
    """
    for node in list(module.graph.nodes):
        block = _block_of(node)
        if block is not None:
            _inline(node, (block,), module)
    module.graph.lint()


def _block_of(node: Node) -> Block | None:
    """What a higher-order operator of a region switches; None for any other node."""
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return Grad(bool(node.args[0]))
    if node.target is torch.ops.higher_order.wrap_with_autocast:
        device, dtype, enabled = node.args[:3]
        return Autocast(device, dtype, enabled)  # type: ignore[arg-type]
    return None


def _inline(call: Node, around: Mode, module: GraphModule) -> None:
    """Replace ``call`` by the nodes of its body, which runs within ``around`` by what ``torch.export`` has kept."""
    graph, place = call.graph, 1 if isinstance(_block_of(call), Grad) else 4
    holder = call.args[place]
    assert isinstance(holder, Node)
    path = str(holder.target)
    body = module.get_submodule(path)
    assert isinstance(body, GraphModule)
    values: dict[Node, Any] = dict(zip(body.graph.find_nodes(op="placeholder"), call.args[place + 1 :], strict=True))
    for inner in body.graph.nodes:
        if inner.op in ("placeholder", "output"):
            continue
        with graph.inserting_before(call):
            if inner.op == "get_attr":
                twin = graph.create_node("get_attr", f"{path}.{inner.target}")
            else:
                twin = graph.node_copy(inner, values.__getitem__)
        values[inner] = twin
        twin.meta = inner.meta | {"mode": _known(inner.meta.get("mode"), around)}
    _use_results(call, map_arg(body.graph.output_node().args[0], values.__getitem__))
    if not holder.users:
        graph.erase_node(holder)
    for twin in values.values():
        block = _block_of(twin) if isinstance(twin, Node) else None
        if block is not None:
            _inline(twin, (*around, block), module)


def _known(recorded: Mode | None, exported: Mode) -> Mode:
    """The mode as recorded; for code that switches gradients in a way of its own, as exported."""
    if recorded is None:
        return exported
    if any(not isinstance(block, Autocast) for block in recorded):
        return recorded
    switches = [block for block in exported if isinstance(block, Grad)]
    return (*recorded, *switches[-1:])


def _use_results(call: Node, results: Any) -> None:
    """Let the users of a region's results use ``results``, and remove the region."""
    for user in list(call.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        call.graph.erase_node(user)
    call.graph.erase_node(call)
