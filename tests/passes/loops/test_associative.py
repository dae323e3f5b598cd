"""``torch``'s associative scan becomes linear scans where its combination is affine."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan

import itnet
from itnet_compiler.ir.body import Body, Call, Ref
from itnet_compiler.passes.associative import AssociativeScan


def affine(left, right):
    return left[0] * right[0], right[0] * left[1] + right[1]


def logarithmic(left, right):
    return left[0] + right[0], torch.exp(-right[0]) * left[1] + right[1]


def largest(left, right):
    return torch.maximum(left[0], right[0]), torch.logaddexp(left[1], right[1])


def not_associative(left, right):
    return left[0] * right[0], 0.9 * left[1] + right[1]


class Scans(nn.Module):
    def __init__(self, combine=affine, dim=1, reverse=False, narrow=False, both=True):
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(6, 12)
        self.options, self.combine, self.narrow, self.both = dict(dim=dim, reverse=reverse), combine, narrow, both

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        a, b = self.project(x).chunk(2, -1)
        a = torch.sigmoid(a[..., :1] if self.narrow else a)
        found = associative_scan(self.combine, (a, b), combine_mode="generic", **self.options)
        return found if self.both else found[1]


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(6, 3)

    def forward(self, x):
        return associative_scan(torch.add, self.project(x), dim=-2, combine_mode="generic")


def _results(net, x):
    net.zero_grad()
    out = net(x)
    leaves = out if isinstance(out, tuple) else (out,)
    sum((one * torch.linspace(-1, 1, one.numel(), dtype=one.dtype).view(one.shape)).sum() for one in leaves).backward()
    return [*leaves, *(p.grad for p in net.parameters())]


def _check(unified, model, *lengths, dtype=torch.float32, **tolerance):
    for length in lengths:
        x = torch.randn(3, length, 6, dtype=dtype)
        torch.testing.assert_close(
            _results(unified, x), _results(model, x), **(tolerance or dict(rtol=1e-4, atol=1e-5))
        )


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (Scans(both=False), 1),
        (Scans(reverse=True), 2),
        (Scans(logarithmic, dim=0), 2),
        (Scans(narrow=True), 2),
        (Sums(), 1),
    ],
    ids=["affine", "reversed", "logarithmic", "one decay", "sums"],
)
def test_affine_combinations_are_linear_scans_of_any_length(model, count):
    unified = itnet.unify(model, torch.randn(3, 9, 6), copy=True)
    assert [node.origin for node in unified.integrals.values()] == ["linear recurrence"] * count
    assert all(node.verification.status == "verified" for node in unified.integrals.values())
    _check(unified, model, 9, 1, 40)
    assert len(unified.report().to_dict()["variants"]) == 1


@pytest.mark.parametrize(
    ("combine", "reason"), [(largest, "can run its core"), (not_associative, "differs from its steps")]
)
def test_others_stay_one_node(combine, reason):
    model = Scans(combine)
    unified = itnet.unify(model, torch.randn(3, 9, 6), copy=True)
    (left,) = unified.report().to_dict()["unmatched"]
    assert left["operator"] == "torch.associative_scan" and reason in left["reason"]
    _check(unified, model, 9, 2)
    _check(copy.deepcopy(unified), model, 7)
    assert len(unified.report().to_dict()["variants"]) == 1


def test_other_precisions():
    model = Scans().double()
    _check(
        itnet.unify(model, torch.randn(3, 9, 6).double(), copy=True),
        model,
        9,
        dtype=torch.float64,
        rtol=1e-10,
        atol=1e-12,
    )
    model = Scans().bfloat16()
    x = torch.randn(3, 9, 6).bfloat16()
    torch.testing.assert_close(itnet.unify(model, x, copy=True)(x), model(x), rtol=3e-2, atol=3e-2)


class Rotates(nn.Module):
    """The linear recurrent unit (arXiv:2303.06349): a complex decay for each feature."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.size, self.angle = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))

    def forward(self, x):
        decay = torch.polar(torch.sigmoid(self.size), self.angle).expand(x.shape)
        return associative_scan(affine, (decay, x + 0j), dim=1, combine_mode="generic")[1].real


def test_complex_decays():
    model = Rotates()
    unified = itnet.unify(model, torch.randn(3, 9, 6), copy=True)
    (node,) = unified.integrals.values()
    assert (node.origin, node.verification.status) == ("linear recurrence", "verified")
    _check(unified, model, 9, 30)


def test_leaves_given_from_outside_are_as_large_as_each_other():
    class Given(nn.Module):
        def forward(self, a, b):
            return associative_scan(affine, (a, b), dim=2, combine_mode="generic")

    unified = itnet.unify(Given(), (torch.rand(2, 3, 9, 5), torch.randn(2, 3, 9, 5)), copy=True)
    assert len(unified.integrals) == 2
    for sizes in ((2, 3, 9, 5), (4, 2, 12, 3)):
        a, b = torch.rand(sizes), torch.randn(sizes)
        torch.testing.assert_close(unified(a, b), Given()(a, b))
    assert len(unified.report().to_dict()["variants"]) == 1
    a, b = torch.rand(2, 3, 9, 1), torch.randn(2, 3, 9, 5)
    torch.testing.assert_close(unified(a, b), Given()(a, b))


def test_an_infinite_first_decay_changes_nothing():
    class Given(nn.Module):
        def forward(self, a, b):
            return associative_scan(affine, (a, b), dim=0, combine_mode="generic")[1]

    a, b = torch.rand(9, 3), torch.randn(9, 3)
    unified = itnet.unify(Given(), (a, b), copy=True)
    a[0] = torch.inf
    torch.testing.assert_close(unified(a, b), Given()(a, b))


def test_what_nothing_needs_is_left_out():
    both = AssociativeScan(
        Body(
            (
                Call("aten.mul.Tensor", (Ref("carry", 0), Ref("step", 0))),
                Call("aten.mul.Tensor", (Ref("step", 0), Ref("carry", 1))),
                Call("aten.add.Tensor", (Ref("local", 1), Ref("step", 1))),
            ),
            (Ref("local", 0), Ref("local", 2)),
        )
    )
    body, carried, given = both.of({1})
    assert [str(call) for call in body.calls] == ["mul(%x0, %h0)", "add(%0, %x1)"]
    assert (carried, given, body.carried) == ([1], [0, 1], (Ref("local", 1),))
    assert both.of({0, 1})[0].calls == both.combine.calls
