"""Progress: nothing for short or piped work, a count for long work, no thread left behind."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest

from itnet_compiler.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quick_work_writes_nothing() -> None:
    terminal = Terminal()
    with Progress(terminal, delay=30.0) as progress, progress.stage("verify", total=3) as step:
        for _ in range(3):
            step()
    assert terminal.getvalue() == ""


def test_long_work_shows_stage_and_count_and_wipes_them_away() -> None:
    terminal = Terminal()
    with Progress(terminal, delay=0.01) as progress:
        progress.stage("capture")
        time.sleep(0.15)
        step = progress.stage("verify", total=54)
        for _ in range(12):
            step()
        time.sleep(0.12)
        step()
    text = terminal.getvalue()
    assert "itnet: capture" in text
    assert "verify 13/54" in text
    last = text.split("\r")
    assert last[-1] == "" and last[-2].strip() == ""


def test_a_stage_that_never_ticks_still_appears() -> None:
    terminal = Terminal()
    with Progress(terminal, delay=0.01) as progress:
        progress.stage("capture")
        time.sleep(0.1)
        assert "capture" in terminal.getvalue()


def test_quiet_and_without_thread_where_the_stream_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    before = threading.active_count()
    with Progress(delay=0.0) as progress:
        step = progress.stage("verify", total=2)
        assert threading.active_count() == before
        time.sleep(0.02)
        step()
    assert stream.getvalue() == ""


def test_no_thread_is_left_behind_even_after_an_error() -> None:
    def interrupted() -> None:
        with Progress(Terminal(), delay=60.0) as progress:
            progress.stage("capture")
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert set(threading.enumerate()) == before


def test_entering_again_keeps_the_outer_one_open() -> None:
    terminal = Terminal()
    progress = Progress(terminal, delay=0.01)
    with progress:
        with progress:
            progress.stage("inner")
            time.sleep(0.05)
        assert progress.visible
        progress.stage("outer")
    assert "outer" in terminal.getvalue() and not progress.visible


def test_a_closed_terminal_does_not_stop_the_work() -> None:
    terminal = Terminal()
    with Progress(terminal, delay=0.01) as progress:
        progress.stage("capture")
        time.sleep(0.05)
        terminal.close()
        progress.stage("verify", total=1)()
