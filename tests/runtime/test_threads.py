"""Threads for compiled loops: all parts are done, whatever one of them raises and whoever else is at work."""

from __future__ import annotations

import os
import threading

import pytest

from itnet_compiler.runtime.threads import share


@pytest.mark.parametrize("parts", [0, 1, 2, 7, 63])
def test_every_part_is_done_once(parts):
    done: list[int] = []
    share(done.append, parts)
    assert sorted(done) == list(range(parts))


@pytest.mark.parametrize("bad", [0, 2])
def test_what_a_part_raises_reaches_the_caller_after_all_are_done(bad):
    done: list[int] = []

    def work(part: int) -> None:
        if part == bad:
            raise KeyError(part)
        done.append(part)

    with pytest.raises(KeyError):
        share(work, 3)
    assert sorted(done) == [part for part in range(3) if part != bad]
    share(done.append, 2)  # the crew is still there


def test_callers_in_many_threads_do_not_wait_for_one_another_forever():
    counts: list[int] = []

    def caller() -> None:
        done: list[int] = []
        for _ in range(50):
            share(done.append, 4)
        counts.append(len(done))

    callers = [threading.Thread(target=caller) for _ in range(6)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(timeout=60)
    assert counts == [200] * 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_a_crew_of_its_own():
    share(lambda part: None, 3)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        share(done.append, 3)
        os._exit(0 if sorted(done) == [0, 1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
