"""Where the values of a step are cut."""

from itnet_compiler.ir.pair.builder import Builder
from itnet_compiler.ir.pair.program import PAIR, SHARED
from itnet_compiler.runtime.rows.segments import segments


def test_what_is_sliced_is_cut_and_all_that_meets_it() -> None:
    b = Builder()
    h, x = b.input("h0", PAIR, (4,)), b.input("x0", PAIR, (8,))
    product = b.linear(h, b.input("w0", SHARED, (8, 4)))
    both = b.add(x, product)
    after = b.mul(b.slice(both, 0, 0, 4), b.slice(both, 0, 4, 8))
    found = segments(b.program([after]), [(h, 0)])
    assert found[x] == found[product] == found[both] == ((0, 4), (4, 8))
    assert found[h] == found[after] == ((0, 4),)


def test_cuts_go_through_joins_and_from_one_step_to_the_next() -> None:
    b = Builder()
    h, x = b.input("h0", PAIR, (6,)), b.input("x0", PAIR, (1,))
    shifted = b.cat([b.slice(h, 0, 1, 6), x], 0)
    found = segments(b.program([shifted]), [(h, 0)])
    assert found[h] == found[shifted] == tuple((at, at + 1) for at in range(6))


def test_numbers_are_not_cut() -> None:
    b = Builder()
    h = b.input("h0", PAIR, (5,))
    total = b.sum(h, [0], keepdim=True)
    scaled = b.mul(h, total)
    found = segments(b.program([b.cat([b.slice(scaled, 0, 2, 5), b.slice(scaled, 0, 0, 2)], 0)]), [])
    assert found[h] == ((0, 2), (2, 5))
    assert found[total] == ((0, 1),)
