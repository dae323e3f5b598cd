"""Attention in every spelling is found, and what only looks like it gives no other result."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import itnet
from itnet_compiler.ir.attention import Attention
from itnet_compiler.unified import program_of
from tests.spellings import attention, near_misses

# Relative L2 against a float64 run, beside twice the original's own error.
SLACK = {torch.float32: 1e-6, torch.bfloat16: 1e-3}


class Within(nn.Module):
    """A program whose arguments are results of other operators; the last one is a mask, or missing."""

    def __init__(self, program):
        super().__init__()
        self.program = program
        self.weight = nn.Parameter(torch.tensor(1.5))

    def forward(self, *given):
        kinds = zip(given, self.program.kinds, strict=True)
        return self.program.function(
            *(x if kind == "b" else x + 0 if kind == "m" else x * self.weight for x, kind in kinds)
        )


def draw(program, batch=None):
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape, kind in zip(program.shapes, program.kinds, strict=True):
        value = torch.randn(shape, generator=generator)
        found.append({"f": value, "b": value > 0.3, "m": torch.where(value > 0.5, -torch.inf, 0.0)}[kind])
    return found


def leaves(result):
    return result if isinstance(result, tuple) else (result,)


def run(model, given, seed=0):
    torch.manual_seed(seed)
    return leaves(model(*given))


def error(value, exact):
    value, exact = value.detach().double(), exact.detach().double()
    assert torch.equal(value.isfinite(), exact.isfinite())
    finite = exact.isfinite()
    return float((value[finite] - exact[finite]).norm() / exact[finite].norm().clamp_min(1e-30))


def as_good(model, unified, given, seed=0):
    """Promise 1: at most twice the original's own error against a float64 run, plus rounding."""
    exact = run(copy.deepcopy(model).double(), [x.double() if x.is_floating_point() else x for x in given], seed)
    slack = SLACK[given[0].dtype]
    for mine, theirs, right in zip(run(unified, given, seed), run(model, given, seed), exact, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        assert error(mine, right) <= 2 * error(theirs, right) + slack


def found_in(unified):
    return [node for node in unified.integrals.values() if node.family == "softmax"]


def _some(programs):
    """Every fourth; the others are tested in make test-all."""
    return [
        program if number % 4 == 0 else pytest.param(program, marks=pytest.mark.exhaustive)
        for number, program in enumerate(programs)
    ]


@pytest.fixture(params=attention.PROGRAMS.values(), ids=str)
def spelling(request):
    return request.param


@pytest.fixture(params=_some(attention.PROGRAMS.values()), ids=str)
def some_spelling(request):
    return request.param


@pytest.fixture(params=_some(near_misses.PROGRAMS.values()), ids=str)
def some_near_miss(request):
    return request.param


@pytest.fixture(params=near_misses.PROGRAMS.values(), ids=str)
def near_miss(request):
    return request.param


def test_there_are_enough():
    assert len(attention.PROGRAMS) >= 60 and len(near_misses.PROGRAMS) >= 30


def test_every_spelling_is_found_and_verified(spelling):
    model, given = Within(spelling).eval(), draw(spelling)
    unified = itnet.unify(model, tuple(given))
    nodes = found_in(unified)
    assert len(nodes) == spelling.count, [entry.reason for entry in program_of(unified).journal.entries]
    assert all(node.verification.status == "verified" for node in nodes)
    as_good(model, unified, given)
    with torch.no_grad():
        as_good(model, unified, given)


def test_gradients_of_every_spelling(some_spelling):
    model, given = (
        Within(some_spelling).double().eval(),
        [x.double() if x.is_floating_point() else x for x in draw(some_spelling)],
    )
    unified = itnet.unify(model, tuple(given), copy=True)
    found = []
    for network in (model, unified):
        inputs = [x.clone().requires_grad_(kind == "f") for x, kind in zip(given, some_spelling.kinds, strict=True)]
        outputs = run(network, inputs)
        generator = torch.Generator().manual_seed(1)
        seeds = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outputs]
        sources = [network.weight, *(x for x in inputs if x.requires_grad)]
        if any(not out.isfinite().all() for out in outputs):
            return  # queries without keys: NaN in both
        found.append(torch.autograd.grad(outputs, sources, seeds, allow_unused=True))
    assert [g is None for g in found[0]] == [g is None for g in found[1]]
    expected, got = (torch.cat([g.flatten() for g in each if g is not None]) for each in found)
    assert error(got, expected) < 1e-12


def test_spellings_in_bfloat16(some_spelling):
    model = Within(some_spelling).eval().bfloat16()
    given = [x.bfloat16() if x.is_floating_point() else x for x in draw(some_spelling)]
    unified = itnet.unify(model, tuple(given))
    assert len(found_in(unified)) == some_spelling.count
    as_good(model, unified, given)


def test_spellings_in_train_mode(some_spelling):
    model, given = Within(some_spelling).train(), draw(some_spelling)
    as_good(model, itnet.unify(model, tuple(given), copy=True), given)


def test_near_misses_compute_what_they_did(near_miss):
    model, given = Within(near_miss).eval(), draw(near_miss)
    unified = itnet.unify(model, tuple(given), copy=True)
    if near_miss.count >= 0:
        assert len(found_in(unified)) == near_miss.count
    assert not [entry for entry in program_of(unified).journal.entries if "the rule failed" in (entry.reason or "")]
    for seed in range(3):
        as_good(model, unified, given, seed)
    # Other values, masks the other way round.
    other = [~x if x.dtype == torch.bool else x.flip(0) - 0.3 if x.isfinite().all() else x for x in given]
    as_good(model, unified, other)


def test_near_misses_in_bfloat16_and_train_mode(some_near_miss):
    model = Within(some_near_miss).train().bfloat16()
    given = [x.bfloat16() if x.is_floating_point() else x for x in draw(some_near_miss)]
    as_good(model, itnet.unify(model, tuple(given), copy=True), given)


# ── sizes


class Sized(nn.Module):
    """A layer with a width and heads, attention written out; everything else is free."""

    def __init__(self, causal, groups=4, dropout=0.0):
        super().__init__()
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 2 * 4 * groups)
        self.out, self.causal, self.groups, self.drop = nn.Linear(16, 16), causal, groups, nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None):
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 4, 4).transpose(1, 2)
        k, v = self.kv(x).view(batch, length, 2, self.groups, 4).permute(2, 0, 3, 1, 4)
        k, v = (t.repeat_interleave(4 // self.groups, 1) for t in (k, v))
        scores = q @ k.transpose(-2, -1) / 2
        if self.causal:
            place = torch.arange(length, device=x.device)
            scores = scores.masked_fill(place > place[:, None], float("-inf"))
        if mask is not None:
            scores = scores + mask[:, None, None, :]
        y = self.drop(scores.softmax(-1)) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, 16))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_one_graph_for_all_sizes(causal, masked, groups):
    model = Sized(causal, groups).eval()

    def given(batch, length):
        mask = torch.where(torch.rand(batch, length) < 0.3, -1e9, 0.0)
        return [torch.randn(batch, length, 16), *([mask] if masked else [])]

    unified = itnet.unify(model, tuple(given(2, 5)))
    assert len(found_in(unified)) == 1
    for batch, length in ((2, 5), (1, 1), (3, 7), (4, 4), (16, 16), (1, 63), (0, 5), (2, 2)):
        as_good(model, unified, given(batch, length))
    assert sum(variant.mode == "eval" for variant in program_of(unified).variants) <= 2


def test_dropout_draws_the_same_numbers():
    model, x = Sized(True, dropout=0.3).train(), torch.randn(2, 9, 16)
    unified = itnet.unify(model, x, copy=True)
    assert found_in(unified)[0].kernel.dropout == 0.3
    for seed in range(3):
        torch.testing.assert_close(run(unified, [x], seed), run(model, [x], seed))


def test_the_source_is_shown_and_says_whether_it_is_fused():
    x = torch.randn(2, 5, 16)
    plain, dropped = itnet.unify(Sized(False).eval(), x), itnet.unify(Sized(False, dropout=0.1).train(), x)
    assert "# fused" in found_in(plain)[0].source()
    assert "# written out: the weights are changed (dropout=0.1)" in found_in(dropped)[0].source()
    assert isinstance(found_in(plain)[0].kernel, Attention)
    assert re.search(r"kernel softmax\(scale=0\.5\) \(q\[b i \(h c\)\]", plain.ir)


class Blind(nn.Module):
    """Some queries see nothing: their weights are NaN, and nobody looks at them afterwards."""

    def __init__(self, filled, groups=1):
        super().__init__()
        self.filled, self.groups = filled, groups

    def forward(self, q, k, v, seen):
        k, v = (t.repeat_interleave(self.groups, 1) for t in (k, v))
        scores = q @ k.transpose(-2, -1)
        hidden = ~seen
        if self.filled:
            scores = scores.masked_fill(hidden, float("-inf"))
        else:
            scores = scores + torch.zeros_like(hidden, dtype=q.dtype).masked_fill(hidden, float("-inf"))
        y = scores.softmax(-1) @ v
        return y.masked_fill(~seen.any(-1, keepdim=True), 0.0)


@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_of_queries_that_see_nothing_are_nan_where_they_were(filled, groups):
    torch.manual_seed(0)
    seen = torch.rand(2, 1, 5, 7) < 0.7
    seen[0, :, 3] = False
    heads = 3 // groups
    given = [torch.randn(2, n, length, 4).double() for n, length in ((3, 5), (heads, 7), (heads, 7))]
    model = Blind(filled, groups)
    unified = itnet.unify(model, (*given, seen))
    assert "# fused" in found_in(unified)[0].source()
    gradients = []
    for network in (model, unified):
        inputs = [x.clone().requires_grad_() for x in given]
        result = network(*inputs, seen)
        assert result.isfinite().all()
        gradients.append(torch.autograd.grad(result.sin().sum(), inputs))
    for mine, right in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(mine, right, equal_nan=True, rtol=1e-9, atol=1e-12)
    assert any(right.isnan().any() for right in gradients[0])


class Stacked(nn.Module):
    """Two layers under one causal mask."""

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        for _ in range(2):
            scores = (x @ x.transpose(1, 2)).masked_fill(~mask, float("-inf"))
            x = scores.softmax(-1) @ x
        return x


def test_one_mask_serves_several_layers():
    model = Stacked()
    unified = itnet.unify(model, torch.randn(2, 5, 4))
    assert [[step.kind for step in node.kernel.steps] for node in found_in(unified)] == [["causal"]] * 2
    for batch, length in ((2, 5), (1, 1), (3, 63)):
        as_good(model, unified, [torch.randn(batch, length, 4)])


class Context(nn.Module):
    """GCNet behind a strided convolution: the number of positions is a product of rounded quotients."""

    def __init__(self):
        super().__init__()
        self.stem, self.scores = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        x = self.stem(x)
        b, c, h, w = x.shape
        weights = self.scores(x).reshape(b, 1, h * w).softmax(-1).unsqueeze(3)
        return x + (x.reshape(b, c, h * w).unsqueeze(1) @ weights).view(b, c, 1, 1)


def test_extents_that_are_rounded_quotients_are_taken_apart():
    model = Context().eval()
    unified = itnet.unify(model, torch.randn(2, 3, 17, 24))
    assert [node.origin for node in unified.integrals.values()] == ["conv2d", "attention"]
    for shape in ((2, 3, 17, 24), (1, 3, 5, 7), (3, 3, 1, 1), (2, 3, 64, 63)):
        as_good(model, unified, [torch.randn(shape)])


class TwoStreams(nn.Module):
    """Two attentions over the same scores (LiLT, arXiv 2202.13669)."""

    def __init__(self, shown=False):
        super().__init__()
        self.shown = shown
        self.own = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.other = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))

    def forward(self, x, mask):
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in self.own)
        q2, k2, v2 = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in self.other)
        one, two = (q @ k.mT) / 2, (q2 @ k2.mT) / 2**0.5
        first = (one + two + mask).softmax(-1) @ v
        second = (two + one + mask).softmax(-1) @ v2
        return (first, second, one) if self.shown else (first, second)


@pytest.mark.parametrize("shown", [False, True])
def test_scores_that_two_attentions_share_are_given_to_both(shown):
    torch.manual_seed(0)
    model, x, mask = TwoStreams(shown), torch.randn(2, 5, 8), torch.zeros(2, 1, 1, 5)
    mask[0, ..., 3:] = -1e9
    unified = itnet.unify(model, (x, mask))
    nodes = list(unified.integrals.values())
    assert [node.family for node in nodes] == ["softmax"] * 2
    assert all(node.verification.status == "verified" and "scores" in node.spec.operands for node in nodes)
    assert "the scores are given" in nodes[0].source()
    # What only kernels take moves nothing; scores that are returned may be taken for anything.
    assert unified.report().to_dict()["coverage"] == pytest.approx(2 / 3 if shown else 1.0)
    for length in (5, 1, 7):
        given = torch.randn(3, length, 8), torch.zeros(3, 1, 1, length)
        slopes = []
        for network in (model, unified):
            outputs = network(*given)
            slopes.append(torch.autograd.grad(sum(out.square().sum() for out in outputs), list(model.parameters())))
            slopes[-1] += outputs
        assert all(torch.allclose(one, two, rtol=1e-5, atol=1e-6) for one, two in zip(*slopes, strict=True))
    again = itnet.unify(copy.deepcopy(unified), (x, mask))
    assert torch.equal(again(x, mask)[0], unified(x, mask)[0])


class Mixed(nn.Module):
    """Products in bfloat16 and a softmax in float32, as autocast runs them."""

    def __init__(self, inside):
        super().__init__()
        self.qkv, self.inside = nn.Linear(16, 48), inside

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.inside):
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
            return torch.softmax(q @ k.mT / 2, -1) @ v


@pytest.mark.parametrize("inside", [True, False])
def test_under_autocast(inside):
    torch.manual_seed(0)
    model, x = Mixed(inside), torch.randn(2, 9, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        unified = itnet.unify(model, x)
        assert len(found_in(unified)) == 1
        mine, theirs = unified(x), model(x)
    assert mine.dtype == theirs.dtype == (torch.bfloat16 if inside else torch.float32)
    exact = copy.deepcopy(model).requires_grad_(False)
    exact.inside = False
    assert error(mine, exact(x)) <= 2 * error(theirs, exact(x)) + SLACK[torch.bfloat16]
