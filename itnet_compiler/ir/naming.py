"""Names and blocks for showing a graph: taken from module paths, so that an edit elsewhere does not change them."""

from __future__ import annotations

import operator
import re
from collections import Counter, defaultdict

import torch
from torch.fx import Graph, Node

__all__ = ["Naming", "inside", "is_hidden", "module_path", "operator_name", "prefixes", "source_line"]

# A numbered part of a model is shown as a block of its own from this many operators on (mean over its siblings).
_BLOCK_SIZE = 6

_SUPPORT = re.compile(r"aten\.(_assert|sym_|_local_scalar_dense|_check)|.*constrain_range|torch\._check|.*_guards_fn")


def module_path(node: Node) -> str:
    """Path of the innermost module that ``node`` was traced in; empty for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()] if isinstance(stack, dict) else []
    # A module called a second time may appear as "layer@1".
    path = paths[-1].removeprefix("L['self'].").split("@")[0] if paths else ""
    return "" if path.startswith("_empty_nn_module_stack") else path


def source_line(node: Node) -> str | None:
    """``file.py:12`` of the call, in the innermost frame outside torch and what records calls while tracing."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    for file, line in reversed(frames):
        file = file.replace("\\", "/")
        if "/torch/" not in file and not file.startswith("torch/") and "/itnet_compiler/capture/" not in file:
            return f"{file.rsplit('/', 1)[-1]}:{line}"
    return None


def operator_name(node: Node) -> str:
    """The operator in one word: ``batch_norm``, ``integral``; ``relu_`` where it works in place."""
    if node.op == "call_module":
        return "integral" if "integral" in node.meta else str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1].lstrip("_").removesuffix("__")
    return getattr(node.target, "__name__", str(node.target))


def prefixes(path: str) -> list[str]:
    """``a.b.c`` → ``a``, ``a.b``, ``a.b.c``."""
    parts = path.split(".") if path else []
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def inside(path: str, block: str) -> bool:
    """Whether ``path`` is ``block`` or below it."""
    return not block or path == block or path.startswith(block + ".")


def is_hidden(node: Node) -> bool:
    """Support nodes, which the text form leaves out or folds into others: asserts, size arithmetic, getitem."""
    if node.op in ("placeholder", "get_attr", "output"):
        return True
    if node.op == "call_module":
        return "integral" not in node.meta
    if node.target is operator.getitem:
        return True
    if isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return not str(node.target).startswith("aten.item")
    return _SUPPORT.match(str(node.target)) is not None


class Naming:
    """Block and name of every node of a graph.

    Attributes:
        block: Node → path of the block in which it is shown; the empty string is the model itself.
        name: Node → its full name; inside its block it is shown without the block's path.
    """

    def __init__(self, graph: Graph) -> None:
        self.shown = [node for node in graph.nodes if not is_hidden(node)]
        self._paths = {node: _path(node) for node in self.shown}
        self._weight: Counter[str] = Counter()
        self._leaves: dict[str, bool] = {}
        for path in self._paths.values():
            self._weight.update(prefixes(path))
        for path in set(self._paths.values()):
            for above in prefixes(path):
                self._leaves[above] = self._leaves.get(above, True) and above == path
        self._blocks = self._numbered_blocks()
        self.block = {node: self._block(path) for node, path in self._paths.items()}
        self.name = self._names(graph)
        self._local: dict[str, set[str]] = defaultdict(set)
        for node in self.shown:
            self._local[self.block[node]].add(self.local(node))

    def local(self, node: Node) -> str:
        """Name of ``node`` inside its own block."""
        return within(self.name[node], self.block.get(node, ""))

    def refer(self, node: Node, block: str) -> str:
        """Name of ``node`` as seen from ``block``: full where it comes from another one."""
        if node.op == "get_attr":
            return within(str(node.target), block)
        if node not in self.block:
            return self.name.get(node, node.name)
        if self.block[node] == block:
            return self.local(node)
        # Where a full name means something else here, a slash says that it is counted from the root.
        clash = self.name[node] in self._local[block]
        return f"/{self.name[node]}" if clash else self.name[node]

    def _numbered_blocks(self) -> set[str]:
        """Members of numbered families (``layer.0`` … ``layer.11``) that are large enough to be a block."""
        members: dict[tuple[str, str], list[str]] = defaultdict(list)
        for path in self._weight:
            parent, _, last = path.rpartition(".")
            if found := re.fullmatch(r"(.*?)\d+", last):
                members[parent, found[1]].append(path)
        blocks: set[str] = set()
        for (_, stem), paths in members.items():
            weight = sum(self._weight[path] for path in paths) / len(paths)
            if weight >= _BLOCK_SIZE and (not stem or len(paths) > 1):
                blocks.update(path for path in paths if not self._leaves[path])
        return blocks

    def _block(self, path: str) -> str:
        chain = prefixes(path)
        numbered = [above for above in chain if above in self._blocks]
        if numbered:
            return numbered[-1]
        for above in chain:
            if not any(inside(block, above) for block in self._blocks):
                return above.rpartition(".")[0] if self._leaves[above] else above
        return path

    def _names(self, graph: Graph) -> dict[Node, str]:
        names: dict[Node, str] = {}
        used: set[str] = set()
        for node in graph.nodes:
            if node.op == "placeholder":
                names[node] = str(node.target)
                used.add(str(node.target))
            elif "integral" in node.meta:
                names[node] = node.meta["integral"].name
                used.add(names[node])
        kinds: dict[str, set[str]] = defaultdict(set)
        for node, path in self._paths.items():
            kinds[path].add(_word(node))
        for node, path in self._paths.items():
            if node in names:
                continue
            # A module of one operator (a ReLU, a Linear) lends it its name; elsewhere the operator's name is added.
            alone = path and self._leaves[path] and len(kinds[path]) == 1
            base = path if alone else f"{path}.{_word(node)}".lstrip(".")
            name, number = base, 1
            while name in used:
                number += 1
                name = f"{base}#{number}"
            used.add(name)
            names[node] = name
        return names


def _word(node: Node) -> str:
    return operator_name(node).rstrip("_")


def _path(node: Node) -> str:
    integral = node.meta.get("integral")
    return module_path(node) if integral is None else integral.module_path


def within(name: str, block: str) -> str:
    """``name`` without the path of ``block`` in front; the last part where it is the block itself."""
    if not block:
        return name
    if name.startswith(block + "."):
        return name[len(block) + 1 :]
    head, mark, number = name.partition("#")
    return head.rpartition(".")[2] + mark + number if head == block else name
