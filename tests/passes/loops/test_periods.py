"""Periodic stretches of tokens."""

from __future__ import annotations

import random
import time

from itnet_compiler.passes.loops.periods import Stretch, stretches


def test_the_longest_stretch_comes_first_with_its_shortest_period() -> None:
    tokens = [90, 91, *[1, 2, 3, 2] * 10, 92, *[5] * 7]
    found = list(stretches(tokens))
    assert found[0] == Stretch(2, 42, 4)
    assert Stretch(43, 50, 1) in found
    assert all(stretch.steps >= 4 for stretch in found)


def test_a_part_of_a_last_step_belongs_to_the_stretch() -> None:
    assert next(stretches([1, 2, 3] * 6 + [1, 2, 9])) == Stretch(0, 20, 3)


def test_multiples_are_tried_last() -> None:
    periods = [stretch.period for stretch in stretches([1, 2] * 16)]
    assert periods.index(2) < periods.index(4)


def test_nothing_recurs() -> None:
    assert list(stretches(list(range(50)))) == []
    assert list(stretches([])) == []
    assert list(stretches([1])) == []


def test_twenty_thousand_nodes_take_a_moment() -> None:
    step = [random.Random(0).randrange(9) for _ in range(20)]
    start = time.perf_counter()
    assert next(stretches(step * 1024)).stop == 20 * 1024
    assert time.perf_counter() - start < 5
