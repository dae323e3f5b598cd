"""Loops: what shares one, what waits for the cotangent, what is kept."""

from __future__ import annotations

from itnet_compiler.ir.pair.adjoint import adjoint
from itnet_compiler.ir.pair.builder import Builder
from itnet_compiler.ir.pair.program import QUERY, SHARED, SOURCE, Program
from itnet_compiler.ir.pair.split import stages
from itnet_compiler.runtime.tiled.schedule import schedule


def _network() -> Program:
    """κ = W₂·gelu(q + s + W₁·sin(p − p'))."""
    b = Builder()
    between = b.sub(b.input("p0", QUERY, (1,)), b.input("p1", SOURCE, (1,)))
    waves = b.elementwise("sin", b.linear(between, b.input("omega", SHARED, (6, 1))))
    total = b.add(b.input("q", QUERY, (8,)), b.input("s", SOURCE, (8,)))
    hidden = b.elementwise("gelu", b.add(total, b.linear(waves, b.input("first", SHARED, (8, 6)))))
    return stages(b.program([b.linear(hidden, b.input("second", SHARED, (3, 8)))])).core


def _names(program, loop):
    return [program.values[number].op for number in loop.values]


def test_elementwise_values_follow_the_product_that_feeds_them():
    core = _network()
    plan = schedule(core)
    assert [_names(core, loop) for loop in plan.before] == [
        ["sub"],
        ["linear", "sin"],
        ["linear", "add", "add", "gelu"],
        ["linear"],
    ] or [_names(core, loop) for loop in plan.before][-1] == ["linear"]
    made = [number for loop in plan.before for number in loop.values]
    assert len(made) == len(set(made))
    assert plan.after == ()


def test_every_value_is_made_after_what_it_reads():
    for program in (_network(), stages(adjoint(_network()).program).core):
        plan = schedule(program)
        done = {number for number, value in enumerate(program.values) if value.op in ("input", "constant", "reshape")}
        for loop in (*plan.before, *plan.after):
            for number in loop.values:
                assert {plan.same[arg] for arg in program.values[number].args} <= done
                done.add(number)
        assert set(program.outputs) <= done


def test_what_another_loop_reads_is_kept():
    program = stages(adjoint(_network()).program).core
    plan = schedule(program)
    place = {number: at for at, loop in enumerate((*plan.before, *plan.after)) for number in loop.values}
    for number, value in enumerate(program.values):
        for arg in (plan.same[arg] for arg in value.args):
            if arg in place and place.get(number, place[arg]) != place[arg]:
                assert arg in plan.stored
    gradient = next(n for n, value in enumerate(program.values) if value.op == "gelu_grad")
    assert place[gradient] < len(plan.before)  # beside gelu itself, of which it shares the work
