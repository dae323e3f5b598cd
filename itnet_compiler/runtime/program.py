"""What is behind a unified model: captured variants of its forward, and the choice between them at every call."""

from __future__ import annotations

import fnmatch
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.fx import Graph

from ..capture.clone import shallow_clone
from ..capture.export import capture
from ..capture.signature import Call, Signature, SignatureReader
from ..errors import ItnetError, LoweringError, ModelError
from ..ir.integral import Integral
from ..lowering.planner import PlanRule, apply_plan
from ..passes.engine import detect
from ..passes.journal import Journal
from ..passes.verify import Verifier
from ..progress import Progress
from ..settings import STAGES, SUMMARY, debug, dump
from .codegen import generate
from .fast_paths import FastPaths
from .tree import TreeState
from .trial import Trial, run_trial
from .variant import Variant

__all__ = ["Program"]

# Beyond this many graphs for one signature and state, further sizes run the original code.
_MOST_VARIANTS = 8
# And beyond this many in all, say where an argument is a step counter, further signatures do.
_MOST_IN_ALL = 32


class Program:
    """Captures, keeps and runs the variants of one unified model.

    Args:
        root: The unified module (or the clone that is about to become one).
        original: The ``forward`` that it replaces, as a function of the module.
        signature: Of ``original`` without the module.
        restore: Makes a clone of ``root`` an instance of the original class again.
        dynamic: Whether sizes stay symbolic.
        verify: Whether rewrites are checked and new variants compared with the original.
    """

    def __init__(
        self,
        root: nn.Module,
        original: Callable[..., Any],
        signature: inspect.Signature,
        restore: Callable[[nn.Module], nn.Module],
        *,
        dynamic: bool = True,
        verify: bool = True,
    ) -> None:
        self.root, self.original, self.restore = root, original, restore
        self.dynamic, self.verified = dynamic, verify
        self.model_name = type(root).__name__
        self._axes = "all" if dynamic else "none"
        self.variants: list[Variant] = []
        self.fallbacks: list[str] = []
        self.plan_rules: list[PlanRule] = []
        self._signature = signature
        self._reader = SignatureReader(signature)
        self._tree = TreeState(root)
        self._fast = FastPaths(root)
        self._table: dict[Any, list[Variant]] = {}
        self._refused: set[Any] = set()
        self._failed: dict[Any, str] = {}
        self._lock = threading.RLock()
        # Asked once: the question costs as much as a small layer.
        self._kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

    # ---- what users see of the current graph

    @property
    def current(self) -> Variant:
        """The first variant for the current mode, of those with gradients where there are some; or the first of all."""
        if not self.variants:
            raise ItnetError(
                "nothing has been captured yet", remedy="call the model once, or itnet.unify(model, example_inputs)"
            )
        mode = "train" if self.root.training else "eval"
        found = [variant for variant in self.variants if variant.label.startswith(mode)] or self.variants
        return next((variant for variant in found if variant.grad), found[0])

    @property
    def graph(self) -> Graph:
        """The flat rewritten graph of the current variant."""
        return self.current.graph

    @property
    def journal(self) -> Journal:
        """The journal of the current variant."""
        return self.current.journal

    @property
    def comparison(self) -> str | None:
        """How the current variant compared with the original on its example call."""
        trial = self.current.trial
        return None if trial is None else trial.describe()

    # ---- running

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the model: through a graph where one fits, else through the original code."""
        if torch.compiler.is_compiling():
            return self._traced(args, kwargs)
        try:
            call = self._reader.read(args, kwargs)
        except TypeError as error:
            self._note(f"calls with other arguments than tensors in plain containers run the original code: {error}")
            return self.original(self.root, *args, **kwargs)
        if self._tree.hooked():
            self._note("modules below the root have hooks: the original code runs, so that they fire")
            return self.original(self.root, *args, **kwargs)
        key = (call.signature, self._tree.read(), self._ambient(call))
        variant = self._choose(key, call)
        if variant is not None:
            return self.run(variant, call.leaves)
        result = self.original(self.root, *args, **kwargs)
        self._settle(key)
        return result

    def _settle(self, key: tuple[Any, ...]) -> None:
        """The original code has accepted a call whose capture failed: that was not the caller's mistake."""
        note = self._failed.pop(key, None)
        if note is not None:
            self._refused.add(key)
            self._note(note)

    def _choose(self, key: tuple[Any, ...], call: Call) -> Variant | None:
        """The variant that serves a call, captured now if need be; None where the original code is to run."""
        shapes = [leaf.shape for leaf in call.leaves]
        widen = True
        for variant in self._table.get(key, ()):
            if variant.capture.guards.fit(shapes):
                if variant.refused:
                    return None
                if self._trusts(variant, call, shapes):
                    return variant
                widen = False
        if key in self._refused or detect_fake_mode(call.leaves) is not None:
            return None
        added = self._add(key, call, widen)
        if added is None or added.refused:
            return None
        if added.capture.guards.fit(shapes) and self._trusts(added, call, shapes):
            return added
        if widen and added.capture.guards.small(shapes):
            return self._choose(key, call)
        self._refused.add(key)
        self._note(f"sizes of 0 or 1 in {call.signature.describe()} cannot be captured")
        return None

    def run(self, variant: Variant, leaves: list[Tensor]) -> Any:
        """Run the graph of ``variant`` on the tensors of a call."""
        assert variant.generated is not None
        return variant.generated.function(*[store[name] for store, name in variant.stores], *leaves)

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call under torch.compile or torch.export: a captured graph where one fits, no capturing.

        With the default plan that graph is the original code, so the tracer is given the original code itself: it
        guards on the few attributes that this reads, where a graph depends on all of them.
        """
        if not self.plan_rules:
            return self.original(self.root, *args, **kwargs)
        call = self._reader.read(args, kwargs)
        shapes = [leaf.shape for leaf in call.leaves]
        # An exported original holds no fast paths either.
        fast = None if torch.compiler.is_exporting() else self._fast.conditions(call.leaves)
        for variant in self.variants:
            same_call = variant.signature == call.signature and variant.fast == fast and not variant.refused
            if same_call and self._tree.matches(variant.state) and variant.capture.guards.fit(shapes):
                return self.run(variant, call.leaves)
        return self.original(self.root, *args, **kwargs)

    def _ambient(self, call: Call) -> tuple[Any, ...]:
        casts = tuple([torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in self._kinds])
        return (*casts, self._fast.read(call.leaves, self._tree.edition))

    def _trusts(self, variant: Variant, call: Call, shapes: list[torch.Size]) -> bool:
        """torch.export takes symbolic sizes to be at least 2; the first call with 0 or 1 is run both ways."""
        small = variant.capture.guards.small(shapes)
        if not small or not self.verified:
            return True
        kind = tuple([(spot, shapes[spot[0]][spot[1]]) for spot in small])
        if kind not in variant.trusted:
            trial = self._try(variant, call)
            variant.trusted[kind] = trial is not None and trial.equal
        return variant.trusted[kind]

    def _try(self, variant: Variant, call: Call) -> Trial | None:
        def graph(*args: Any, **kwargs: Any) -> Any:
            return self.run(variant, self._reader.read(args, kwargs).leaves)

        def original(*args: Any, **kwargs: Any) -> Any:
            return self.original(self.root, *args, **kwargs)

        try:
            with self._tree.unchanged_settings():
                return run_trial(self.root, original, graph, call.args, call.kwargs)
        except Exception as error:
            debug(SUMMARY, "trial run failed: %s: %s", type(error).__name__, error)
            return None

    def _note(self, text: str) -> None:
        if text not in self.fallbacks:
            self.fallbacks.append(text)
            debug(SUMMARY, "%s", text)

    # ---- capturing

    def read(self, *args: Any, **kwargs: Any) -> Call:
        """A call in normal form. Raises ``TypeError`` for arguments that no signature can hold."""
        return self._reader.read(args, kwargs)

    def has(self, call: Call) -> bool:
        """Whether a variant serves ``call`` in the current mode."""
        key = (call.signature, self._tree.read(), self._ambient(call))
        shapes = [leaf.shape for leaf in call.leaves]
        return any(variant.capture.guards.fit(shapes) for variant in self._table.get(key, ()))

    def _add(self, key: tuple[Any, ...], call: Call, widen: bool) -> Variant | None:
        """Capture a further variant at a call; on failure the call's kind runs the original code from now on."""
        with self._lock:
            if len(self._table.get(key, ())) >= _MOST_VARIANTS or len(self.variants) >= _MOST_IN_ALL:
                self._refused.add(key)
                self._note(f"{call.signature.describe()}: the original code runs: too many graphs would be needed")
                return None
            self._refuse_meta(call)
            try:
                return self.add(call, widen=widen)
            except ItnetError as error:
                mode = "train" if self.root.training else "eval"
                self._failed[key] = f"{mode} mode, {call.signature.describe()}: the original code runs: {error.reason}"
                return None

    def _refuse_meta(self, call: Call) -> None:
        """Real inputs for a model without values: the one mistake that the original's own error does not explain."""
        on_meta = next((name for name, tensor in self.root.named_parameters() if tensor.is_meta), None)
        if on_meta is not None and not all(leaf.is_meta for leaf in call.leaves):
            raise ModelError(
                f"parameter {on_meta!r} is on the meta device: the model can be inspected but not run",
                remedy="give it values first: model.to_empty(device='cpu') and model.load_state_dict(…)",
                node=on_meta,
            )

    def _compare(self, variant: Variant, call: Call) -> None:
        """Hold a new variant against the original on ``call``; refuse it where they differ."""
        variant.trial = self._try(variant, call)
        if variant.trial is None:
            self._refuse(variant, "could not be run")
        elif not variant.trial.equal:
            self._refuse(variant, f"differs from the original by {variant.trial.error:.1e}")

    def _refuse(self, variant: Variant, how: str) -> None:
        variant.refused = f"{variant.label}: the captured graph {how}; the original code runs"
        self._note(variant.refused)

    def add(self, call: Call, progress: Progress | None = None, *, widen: bool = True) -> Variant:
        """Capture, rewrite and register a variant for ``call``.

        Raises:
            CaptureError: where the model cannot be captured at this call.
        """
        with progress or Progress() as shown:
            state, ambient = self._tree.read(), self._ambient(call)
            seconds: dict[str, float] = {}
            start = time.perf_counter()
            shown.stage("capture")
            # Only fast paths make a difference between a graph for calls with and without gradients.
            clone, grad = self.restore(shallow_clone(self.root)), torch.is_grad_enabled() or ambient[-1] is None
            captured = capture(clone, call, axes=self._axes, widen=widen, grad=grad)
            self._axes = captured.axes
            seconds["capture"] = time.perf_counter() - start
            dump("captured", str(captured.graph))
            start = time.perf_counter()
            verifier = Verifier() if self.verified else None
            journal = detect(captured.graph, verifier=verifier, begin=lambda total: shown.stage("verify", total))
            seconds["detect and verify"] = time.perf_counter() - start
            dump("rewritten", str(captured.graph))
            variant = Variant(self._label(call.signature, grad), call.signature, state, ambient, captured, journal)
            variant.seconds = seconds
            apply_plan(variant.integrals, self.plan_rules)
            self._bind(variant)
            for note in captured.notes:
                self._note(note)
            if captured.refused:
                self._refuse(variant, captured.refused)
            elif self.verified and not _is_virtual(self.root, call):
                start = time.perf_counter()
                shown.stage("compare")
                self._compare(variant, call)
                seconds["compare"] = time.perf_counter() - start
            for stage, took in seconds.items():
                debug(STAGES, "%s: %.2f s", stage, took)
            # The trial may have shown that the model writes some of its attributes itself.
            variant.state = state = self._tree.read()
            # A replaced part of the tree makes every earlier graph worthless.
            self.variants = [other for other in self.variants if other.state[0] == state[0]]
            self.variants.append(variant)
            self._table.setdefault((call.signature, state, ambient), []).append(variant)
            return variant

    def _label(self, signature: Signature, grad: bool) -> str:
        mode = "train" if self.root.training else "eval"
        same = [v for v in self.variants if v.label.startswith(mode) and v.grad == grad]
        mode += "" if grad else " (no grad)"
        return mode if not same else f"{mode} {len(same) + 1}: {signature.describe()}"

    def _bind(self, variant: Variant) -> None:
        captured = variant.capture
        variant.generated = generate(captured.graph, captured.output, captured.constants)
        variant.stores = []
        for path in variant.generated.paths:
            spot = self._tree.locate(path)
            if spot is None:
                spot = (captured.constants, path)
            variant.stores.append(spot)

    # ---- plans and copies

    def plan(self, rule: PlanRule | None) -> None:
        """Add a plan rule for present and later variants; None forgets all rules."""
        rules = [] if rule is None else [*self.plan_rules, rule]
        if rule is not None and not self.find(rule.pattern):
            names = ", ".join(integral.name for integral in self.current.integrals[:5])
            raise LoweringError(f"no integral is called {rule.pattern!r}", remedy=f"the names are {names} …")
        for variant in self.variants:
            apply_plan(variant.integrals, rules)
            self._bind(variant)
        self.plan_rules = rules

    def find(self, pattern: str) -> list[Integral]:
        """Integrals of the current variant whose name matches a glob."""
        return [i for i in self.current.integrals if fnmatch.fnmatchcase(i.name, pattern)]

    def bound_to(self, root: nn.Module) -> Program:
        """The same program for a copy of the module tree."""
        twin = Program(root, self.original, self._signature, self.restore, dynamic=self.dynamic, verify=self.verified)
        twin._tree.ignore_as(self._tree)
        twin.plan_rules, twin.fallbacks = list(self.plan_rules), list(self.fallbacks)
        state = self._tree.read()
        for variant in self.variants:
            other = variant.copy()
            other.state = (twin._tree.edition, *variant.state[1:])
            twin._bind(other)
            twin.variants.append(other)
            if variant.state[0] == state[0]:
                twin._table.setdefault((other.signature, other.state, other.ambient), []).append(other)
        return twin


def _is_virtual(root: nn.Module, call: Call) -> bool:
    """Whether there is nothing to run on: meta or fake tensors."""
    tensors = [*root.parameters(), *root.buffers(), *call.leaves]
    return any(tensor.is_meta for tensor in tensors) or detect_fake_mode(tensors) is not None
