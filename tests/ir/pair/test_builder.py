"""Shape rules, equal values, idle steps, and the text form of programs."""

from __future__ import annotations

import math

import pytest

from itnet_compiler.ir.pair.builder import Builder, broadcast
from itnet_compiler.ir.pair.program import QUERY, SHARED, SOURCE, Program, without_dead_values


def test_broadcast():
    assert broadcast((3, 1), (4,)) == (3, 4)
    assert broadcast((), (2,)) == (2,)
    assert broadcast((0,), (1,)) == (0,)
    with pytest.raises(ValueError, match="do not broadcast"):
        broadcast((3,), (2,))


def test_equal_values_are_one_and_idle_steps_vanish():
    b = Builder()
    x = b.input("x", QUERY, (2, 3))
    assert b.add(x, b.constant(0.0)) == x
    assert b.mul(b.constant(1.0), x) == x
    assert b.neg(b.neg(x)) == x
    assert b.reshape(b.reshape(x, (6,)), (2, 3)) == x
    assert b.transpose(b.transpose(x)) == x
    assert b.permute(b.reshape(x, (1, 2, 3)), (1, 0, 2)) == b.reshape(x, (2, 1, 3))
    assert b.elementwise("sin", x) == b.elementwise("sin", x)
    assert b.number_of(b.mul(b.constant(3.0), b.constant(-2.0))) == -6.0
    assert b.slice(x, 1, 0, 3) == x


def test_products_choose_the_shared_side_as_matrix():
    b = Builder()
    x, w = b.input("x", QUERY, (1, 4)), b.input("w", SHARED, (4, 5))
    product = b.values[b.matmul(x, w)]
    assert (b.values[product.args[0]].op, product.shape) == ("linear", (1, 5))
    y = b.input("y", SOURCE, (4, 2))
    assert b.shape(b.matmul(x, y)) == (1, 2)
    assert b.values[b.matmul(x, y)].op == "sum"
    with pytest.raises(ValueError, match="depends on a position"):
        b.linear(x, b.transpose(y))


def test_wrong_shapes_are_refused():
    b = Builder()
    x = b.input("x", QUERY, (4,))
    with pytest.raises(ValueError, match="does not fit"):
        b.linear(x, b.input("w", SHARED, (2, 3)))
    with pytest.raises(ValueError, match="viewed"):
        b.reshape(x, (3,))
    with pytest.raises(ValueError, match="expanded"):
        b.expand(x, (5,))
    with pytest.raises(ValueError, match="takes 1"):
        b.elementwise("sin", x, x)


def test_text_and_dead_values():
    b = Builder()
    x, _ = b.input("x", QUERY, (4,)), b.input("unused", SHARED, ())
    y = b.where(b.elementwise("gt", x, b.constant(-math.inf)), b.slice(x, 0, 1, 3, 2), b.power(b.sum(x, [0]), 2.5))
    program = without_dead_values(b.program([y]))
    assert Program.parse(str(program)) == program
    assert [item.name for item in program.inputs] == ["x"]
    assert set(program.sides) == {SHARED, QUERY}
    assert "query[4] = x" in program.describe()
