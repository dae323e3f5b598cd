"""Jacobians of steps, against those that torch finds."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.pair.builder import Builder
from itnet_compiler.ir.pair.dense import run
from itnet_compiler.ir.pair.program import PAIR, SHARED, Program
from itnet_compiler.ir.row_reverse import reverse
from itnet_compiler.ir.row_step import row_step
from itnet_compiler.ir.row_tangent import TANGENT, directional, unitwise, with_diagonals
from itnet_compiler.lowering.cells import cell_program
from tests.runtime.rows.steps import STEPS, example, loop


def _given(program: Program) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {item.name: torch.randn(item.shape, generator=generator, dtype=torch.float64) for item in program.inputs}


def _jacobian(program, carried, given):
    """Blocks (i, j) of one row, by torch."""
    names = [name for name, _ in carried]

    def after(*states):
        made = run(program, given | dict(zip(names, states, strict=True)), 0)
        return tuple(made[place].expand(program.values[program.outputs[place]].shape) for _, place in carried)

    states = tuple(given.get(name, torch.zeros(1, dtype=torch.float64)) for name in names)
    return torch.autograd.functional.jacobian(after, states)


def _programs() -> dict[str, tuple[Program, tuple[tuple[str, int], ...]]]:
    found = {}
    for name in STEPS:
        program = row_step(loop(name, example(name, 3, 4, 1), 1)).program
        found[name] = program, len(STEPS[name][0].carried)
    for cell in ("lstm", "gru", "rnn_tanh"):
        found[cell] = Program.parse(cell_program(cell, 5, True)), 1 + (cell == "lstm")
    programs = {}
    for name, (program, count) in found.items():
        programs[name] = program, tuple((f"h{place}", place) for place in range(count))
        back = reverse(program, count)
        programs[f"{name}, reversed"] = back.program, back.carried
    return programs


PROGRAMS = _programs()


@pytest.mark.parametrize("name", PROGRAMS)
def test_directional_is_the_jacobian(name):
    program, carried = PROGRAMS[name]
    given, tangent = _given(program), directional(program, carried)
    wanted = _jacobian(program, carried, given)
    for column, (source, _) in enumerate(carried):
        if source not in given:
            continue
        units = given[source].numel()
        shapes = [program.values[program.outputs[place]].shape for _, place in carried]
        tangents = {
            f"{TANGENT}_{place}": torch.zeros(1, *shape, dtype=torch.float64) for place, shape in enumerate(shapes)
        }
        tangents[f"{TANGENT}_{column}"] = torch.eye(units, dtype=torch.float64)
        made = run(tangent, {key: one.unsqueeze(0) for key, one in given.items()} | tangents, 1)
        for row, found in enumerate(made[len(program.outputs) :]):
            block = wanted[row][column].T
            torch.testing.assert_close(found.expand(block.shape), block)


# Steps whose units meet in sums, or whose widths do not fit together, have only a part of the diagonal.
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name.split(",")[0] not in ("normalised", "joined")])
def test_unitwise_is_the_diagonal_of_each_block(name):
    program, carried = PROGRAMS[name]
    given, found = _given(program), unitwise(program, carried)
    matrices = {key: one for key, one in given.items() if key[0] == "w"}
    made = run(found.program, given | with_diagonals(found, matrices), 0)[len(program.outputs) :]
    entries = dict(zip(found.entries, made, strict=True))
    turn = {place: number for number, group in enumerate(found.groups) for place in group}
    for row, blocks in enumerate(_jacobian(program, carried, given)):
        for column, block in enumerate(blocks):
            wanted = block.diagonal() if block.shape[0] == block.shape[1] else torch.zeros(())
            assert (row, column) in entries or not wanted.any() or turn[row] < turn[column]
            if (row, column) in entries:
                torch.testing.assert_close(entries[row, column].expand(wanted.shape), wanted)


def test_units_that_meet_in_sums_count_as_constants():
    program, carried = PROGRAMS["normalised"]
    assert set(unitwise(program, carried).entries) == {(0, 0), (0, 1), (1, 1)}
    program, carried = PROGRAMS["joined"]
    assert unitwise(program, carried).entries == ()


def test_values_that_meet_unit_by_unit_are_one_group_and_others_have_an_order():
    b = Builder()
    place, speed = b.input("h0", PAIR, (3,)), b.input("h1", PAIR, (3,))
    program = b.program([b.add(place, speed), b.sub(speed, b.elementwise("sin", place))])
    found = unitwise(program, (("h0", 0), ("h1", 1)))
    assert (found.groups, len(found.entries)) == (((0, 1),), 4)
    program, carried = PROGRAMS["lstm"]  # c is carried unit by unit, h goes through the matrix
    assert unitwise(program, carried).groups == ((1,), (0,))


def test_one_unit_is_exact_through_sums_and_maxima():
    b = Builder()
    h = b.input("h0", PAIR, (1,))
    wide = b.mul(b.expand(h, (3,)), b.input("w0", SHARED, (3,)))
    after = b.add(b.reshape(b.sum(wide, [0]), (1,)), b.reshape(b.amax(b.elementwise("tanh", wide), [0]), (1,)))
    program, carried = b.program([after]), (("h0", 0),)
    given = _given(program)
    wanted = _jacobian(program, carried, given)[0][0].reshape(-1)
    torch.testing.assert_close(run(unitwise(program, carried).program, given, 0)[-1].reshape(-1), wanted)
    tangent = run(directional(program, carried), given | {f"{TANGENT}_0": torch.ones(1, dtype=torch.float64)}, 0)[-1]
    torch.testing.assert_close(tangent, wanted)
