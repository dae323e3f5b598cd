"""What is behind a boundary: captured variants of its forward, and the choice between them at every call."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.fx import Graph

from ..capture.questions import answers
from ..capture.signature import Call, SignatureReader
from ..capture.throwaway import StateWritten
from ..errors import ItnetError, ModelError
from ..ir.integral import Integral
from ..lowering.planner import PlanRule, apply_plan
from ..passes.journal import Journal
from ..progress import Progress
from ..settings import SUMMARY, debug
from .boundary import Face, Policy, is_plain, is_transformed, is_watching, plainly
from .build import bind, is_virtual, refuse_meta
from .comparison import compare
from .division import division
from .fast_paths import FastPaths
from .lengths import build_any_length
from .tree import TreeState
from .trial import Trial, run_trial, unrecorded
from .variant import Variant

__all__ = ["Program"]

# Beyond this many graphs for one signature and state, further sizes run the original code; beyond this many in all, say
# where an argument is a step counter, further signatures do.
_MOST_VARIANTS, _MOST_IN_ALL = 8, 32


class Program:
    """Captures, keeps and runs the variants of one boundary.

    Args:
        root: The module that is a boundary (or about to become one).
        original: The ``forward`` that it replaces, as a function of the module.
        signature: Of ``original`` without the module.
        face: How modules become boundaries.
        policy: Shared by all boundaries of a unified model.
        path: Of ``root`` in that model.
    """

    def __init__(
        self,
        root: nn.Module,
        original: Callable[..., Any],
        signature: inspect.Signature,
        face: Face,
        policy: Policy,
        path: str = "",
    ) -> None:
        self.root, self.original, self.face, self.policy, self.path = root, original, face, policy, path
        self.model_name = type(root).__name__
        self.axes = "all" if policy.dynamic else "none"
        self.asks: set[str] = set()
        self.variants: list[Variant] = []
        self.fallbacks: list[str] = []
        self.comparison_of_parts: str | None = None
        self.plan_rules: list[PlanRule] = []
        self.careful: list[PlanRule] = []
        self.reader, self.tree = SignatureReader(signature), TreeState(root)
        self._signature = signature
        self._fast = FastPaths(root)
        self._table: dict[Any, list[Variant]] = {}
        self._refused: set[Any] = set()
        self._failed: dict[Any, ItnetError] = {}
        self._settling: set[Any] = set()
        self._divided: set[Any] = set()
        self._hopeless: set[Any] = set()
        self._lock = threading.RLock()
        # Asked once: the question costs as much as a small layer.
        self._kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

    # ---- what users see

    @property
    def verified(self) -> bool:
        """Whether rewrites are checked."""
        return self.policy.verify

    @property
    def mode(self) -> str:
        """``train`` or ``eval``."""
        return "train" if self.root.training else "eval"

    @property
    def current(self) -> Variant:
        """The first variant for the current mode, of those with gradients where there are some; or the first of all."""
        if not self.variants:
            raise ItnetError(
                "nothing has been captured yet", remedy="call the model once, or itnet.unify(model, example_inputs)"
            )
        found = [variant for variant in self.variants if variant.mode == self.mode] or self.variants
        found = [variant for variant in found if not variant.refused] or found
        return next((variant for variant in found if variant.grad), found[0])

    @property
    def whole(self) -> bool:
        """Whether one graph is run for all of ``root``, in the current mode where anything is known of that."""
        usable = {variant.mode for variant in self.variants if not variant.refused}
        return self.mode in usable or bool(usable and not any(note.startswith(self.mode) for note in self.fallbacks))

    @property
    def title(self) -> str:
        """Class name, with the path of a part."""
        return f"{self.path}: {self.model_name}" if self.path else self.model_name

    @property
    def graph(self) -> Graph:
        """The flat rewritten graph of the current variant."""
        return self.current.graph

    @property
    def one_graph(self) -> Graph:
        """The graph of the module as a whole. Raises ``ItnetError`` where it runs in parts."""
        if self.variants and not self.whole:
            raise ItnetError("the model was captured in parts", remedy="unified.parts[path].graph is the graph of one")
        return self.current.graph

    @property
    def journal(self) -> Journal:
        """The journal of the current variant."""
        return self.current.journal

    @property
    def comparison(self) -> str | None:
        """How the current variant, or the model in parts, compared with the original on the example call."""
        if not self.whole:
            return self.comparison_of_parts
        trial = self.current.trial
        return None if trial is None else trial.describe()

    # ---- running

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the module: through a graph where one fits, else through the original code."""
        if torch.compiler.is_compiling():
            return self._traced(args, kwargs)
        if is_plain() or (self._hopeless and self._manner(args, kwargs) in self._hopeless):
            return self.original(self.root, *args, **kwargs)
        if self.path in self.policy.opened:
            return self._divide(("opened", self.root.training), args, kwargs)
        try:
            call = self.reader.read(args, kwargs)
        except TypeError as error:
            self.note(f"calls with other arguments than tensors in plain containers run the original code: {error}")
            self._give_up(args, kwargs)
            # A key-value cache in a call of generate(): nothing to gain from many small graphs.
            return self._divide("objects", args, kwargs, unless=bool(self.variants))
        if hooks := self.tree.hooked():
            self.note(f"{hooks}: the original code runs, so that they fire")
            return self._divide((call.signature, "hooks"), args, kwargs, unless=hooks.startswith("global"))
        key = (call.signature, self.tree.read(), self.ambient(call))
        variant = self._choose(key, call)
        if variant is not None:
            return self.run(variant, call.leaves)
        failure = self._failed.get(key)
        # Attributes are often written in the first call only; the second one tries again.
        settling = isinstance(failure, StateWritten) and key not in self._settling
        result = self._divide(key, args, kwargs, unless=settling)
        self._settle(key, call, settling, args, kwargs)
        return result

    def _divide(self, key: Any, args: Any, kwargs: Any, *, unless: bool = False) -> Any:
        """The original code; the first time for a key, every module that it calls may become a boundary."""
        if unless or key in self._divided or not self.policy.divide or is_watching() or is_transformed():
            return self.original(self.root, *args, **kwargs)
        self._divided.add(key)
        with division(self):
            return self.original(self.root, *args, **kwargs)

    def _manner(self, args: Any, kwargs: Any) -> Any:
        """What is quickly seen of a call."""
        kinds = (*map(type, args), *((name, type(value)) for name, value in kwargs.items()))
        return self.root.training, torch.is_grad_enabled(), kinds

    def _give_up(self, args: Any, kwargs: Any) -> None:
        """Calls of this manner run the original code without further ado, where this is a part that has no graph."""
        if self.path and not self.variants:
            self._hopeless.add(self._manner(args, kwargs))

    def _settle(self, key: tuple[Any, ...], call: Call, settling: bool, args: Any, kwargs: Any) -> None:
        """The original code has accepted a call whose capture failed: that was not the caller's mistake."""
        failure = self._failed.pop(key, None)
        if settling:
            self._settling.add(key)
        elif failure is not None:
            self._refused.add(key)
            self.note(self._describe(call, failure))
            self._give_up(args, kwargs)

    def _choose(self, key: tuple[Any, ...], call: Call) -> Variant | None:
        """The variant that serves a call, captured now if need be; None where the original code is to run."""
        shapes = [leaf.shape for leaf in call.leaves]
        widen = True
        for variant in self._table.get(key, ()):
            if variant.fits(shapes, self.root):
                if variant.refused:
                    return None
                if self._trusts(variant, call):
                    return variant
                widen = False
        if key in self._refused or is_transformed() or detect_fake_mode(call.leaves) is not None:
            return None
        added = self._add(key, call, widen)
        if added is None or added.refused:
            return None
        if added.fits(shapes, self.root) and self._trusts(added, call):
            return added
        if widen and added.capture.guards.small(shapes):
            return self._choose(key, call)
        self._refused.add(key)
        self.note(f"{self.mode} mode: sizes of 0 or 1 in {call.signature.describe()} cannot be captured")
        return None

    def run(self, variant: Variant, leaves: list[Tensor]) -> Any:
        """Run the graph of ``variant`` on the tensors of a call."""
        return variant.run(self.root, leaves)

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call under torch.compile or torch.export: a captured graph where one fits, no capturing.

        Where every integral is one operator, run as before, that graph is the original code, so the tracer is given
        that itself: it guards on the few attributes that this reads, where a graph depends on all of them.
        """
        if not any(variant.own_code for variant in self.variants):
            return self.original(self.root, *args, **kwargs)
        try:
            call = self.reader.read(args, kwargs)
        except TypeError:
            return self.original(self.root, *args, **kwargs)
        # An exported original holds no fast paths either.
        asked = answers(self.asks, self.root, call.leaves) if self.asks else None
        exporting = torch.compiler.is_exporting()
        signature = call.signature.real() if exporting else call.signature
        fast = None if exporting else self._fast.conditions(call.leaves)
        for variant in self.variants:
            if variant.serves(signature, call.leaves, fast, asked) and self.tree.matches(variant.state):
                return self.run(variant, call.leaves)
        return self.original(self.root, *args, **kwargs)

    def ambient(self, call: Call) -> tuple[Any, ...]:
        """What a graph depends on besides the call and the tree: autocast, gradients if asked for, fast paths."""
        casts = tuple([torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in self._kinds])
        asked = answers(self.asks, self.root, call.leaves) if self.asks else None
        return (*casts, asked, self._fast.read(call.leaves, self.tree.edition))

    def minds_grad(self, ambient: tuple[Any, ...]) -> bool:
        """Whether calls with and without gradients need graphs of their own."""
        return bool(self.asks & {"grad", "requires_grad"}) or ambient[-1] is not None

    def _trusts(self, variant: Variant, call: Call) -> bool:
        """The first call with sizes that nothing vouches for is run both ways: 0, 1, and lengths of loops."""
        kind = variant.kind(call.leaves)
        if not kind or not self.verified:
            return True
        if kind not in variant.trusted:
            variant.trust(call.leaves, self.try_out(variant, call, gradients=bool(variant.spots)))
        return variant.trusted[kind]

    def try_out(self, variant: Variant, call: Call, *, gradients: bool = False, strict: bool = False) -> Trial | None:
        """Hold a variant against the original on ``call``, as ``run_trial`` does; None where it could not be run."""

        def graph(*args: Any, **kwargs: Any) -> Any:
            return self.run(variant, self.reader.read(args, kwargs).leaves)

        try:
            how: Any = {"gradients": gradients, "code": self._code, "strict": strict, "sketched": bool(variant.spots)}
            return run_trial(self.root, self.plain, graph, call.args, call.kwargs, **how)
        except Exception as error:
            debug(SUMMARY, "trial run failed: %s: %s", type(error).__name__, error)
            return None

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """The original code, with that of all boundaries below."""
        return self._code(self.root, *args, **kwargs)

    def _code(self, root: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with plainly():
            return self.original(root, *args, **kwargs)

    def fail(self, call: Call, error: ItnetError) -> None:
        """Remember that a call of this kind cannot be captured, and why."""
        key = (call.signature, self.tree.read(), self.ambient(call))
        self._refused.add(key)
        self.note(self._describe(call, error))

    def note(self, text: str) -> None:
        """Add a line about calls that run the original code."""
        if text not in self.fallbacks:
            self.fallbacks.append(text)
            debug(SUMMARY, "%s", text)

    # ---- capturing

    def known(self, call: Call) -> Sequence[Variant]:
        """The variants for calls such as ``call`` in the current mode, whatever their sizes."""
        return self._table.get((call.signature, self.tree.read(), self.ambient(call)), ())

    def has(self, call: Call) -> bool:
        """Whether a variant serves ``call`` in the current mode."""
        shapes = [leaf.shape for leaf in call.leaves]
        return any(variant.fits(shapes, self.root) for variant in self.known(call))

    def _add(self, key: tuple[Any, ...], call: Call, widen: bool) -> Variant | None:
        """Capture a further variant at a call; on failure the call's kind runs the original code from now on."""
        with self._lock:
            if len(self._table.get(key, ())) >= _MOST_VARIANTS or len(self.variants) >= _MOST_IN_ALL:
                self._refused.add(key)
                self.note(f"{self.mode} mode, {call.signature.describe()}: too many graphs would be needed")
                return None
            kind = (self.mode, call.signature, *map(type, self.root.modules()))
            try:
                refuse_meta(self.root, call)
                if kind in self.policy.failures:
                    raise self.policy.failures[kind]
                return self.add(call, widen=widen)
            except ModelError:
                raise
            except ItnetError as error:
                # Its frames would keep the tensors of this call alive.
                error.__cause__ = error.__context__ = error.__traceback__ = None
                if self.path and error.source_line and not isinstance(error, StateWritten):
                    self.policy.failures[kind] = error
                self._failed[key] = error
                return None

    def _describe(self, call: Call, error: ItnetError) -> str:
        return f"{self.mode} mode, {call.signature.describe()}: {error.sentence()}"

    def add(self, call: Call, *, widen: bool = True) -> Variant:
        """Capture, rewrite and register a variant for ``call``.

        Raises:
            CaptureError: where the model cannot be captured at this call.
        """
        with Progress.current() as shown, unrecorded():
            variant = build_any_length(self, call, shown, widen=widen)
            for note in variant.capture.notes:
                self.note(note)
            if variant.capture.refused:
                self._refuse(variant, variant.capture.refused)
            elif variant.trial is None and self.verified and not is_virtual(self.root, call):
                start = time.perf_counter()
                shown.stage("compare")
                if how := compare(self, variant, call):
                    self._refuse(variant, how)
                variant.seconds["compare"] = time.perf_counter() - start
            # A replaced part of the tree makes every earlier graph worthless.
            self.variants = [other for other in self.variants if other.state[0] == variant.state[0]]
            self.variants.append(variant)
            self._table.setdefault((call.signature, variant.state, variant.ambient), []).append(variant)
            return variant

    def _refuse(self, variant: Variant, how: str) -> None:
        variant.refused = f"{variant.label}: the captured graph {how}"
        self.note(variant.refused)

    # ---- plans and copies

    def plan(self, rules: list[PlanRule]) -> None:
        """Run present and later variants by these rules.

        Raises:
            LoweringError: where an integral does not support what a rule asks for.
        """
        for variant in self.variants:
            apply_plan(variant.integrals, [*self.careful, *rules])
            bind(self, variant)
        self.plan_rules = rules

    def bound_to(self, root: nn.Module) -> Program:
        """The same program for a copy of the module tree."""
        twin = Program(root, self.original, self._signature, self.face, self.policy, self.path)
        twin.plan_rules, twin.careful, twin.fallbacks = list(self.plan_rules), list(self.careful), list(self.fallbacks)
        twin.axes, twin.asks, twin.comparison_of_parts = self.axes, self.asks, self.comparison_of_parts
        integrals: dict[int, Integral] = {}
        for variant in self.variants:
            other = variant.copy(integrals)
            other.state = (twin.tree.edition, *variant.state[1:])
            bind(twin, other)
            twin.variants.append(other)
            if variant.state[0] == self.tree.read()[0]:
                twin._table.setdefault((other.signature, other.state, other.ambient), []).append(other)
        return twin
