"""Progress bars: seen on a terminal alone, after a while, and never amid what is printed."""

from __future__ import annotations

import io
import sys
import time
import warnings

import pytest

from das_gym import runs
from das_gym.runs import progress, waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard output and errors of a terminal, on which bars are seen at once; no fixture, since pytest sets them anew."""
    screen = Terminal()
    for name in ("stdout", "stderr", "__stderr__"):
        monkeypatch.setattr(sys, name, screen)
    monkeypatch.setattr(runs, "DELAY", 1e-6)
    return screen


def seen(screen: io.StringIO) -> list[str]:
    """The lines as they stand on the screen in the end."""
    lines = []
    for line in screen.getvalue().split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_what_is_printed_stands_above_the_bars(monkeypatch: pytest.MonkeyPatch):
    terminal = a_terminal(monkeypatch)
    with progress(4, "searching", unit="mask") as bar:
        bar.update(1)
        print("step", 1, end="")
        bar.refresh()
        print(", loss 0.5")
        bar.update(1)
        print("step 2")
    print("done")
    assert "step 1, loss 0.5" in seen(terminal)
    assert "step 2" in seen(terminal)
    assert any(line.startswith("searching:  50%") and "2/4" in line for line in seen(terminal))
    assert seen(terminal)[-2] == "done"
    assert sys.stdout is terminal


def test_the_time_left_is_told_and_streams_come_back_after_nested_bars(monkeypatch: pytest.MonkeyPatch):
    terminal = a_terminal(monkeypatch)
    with progress(100, "outer") as outer, progress(10, "inner"):
        outer.start_t -= 5
        outer.update(50)
        outer.refresh()
        assert "<00:0" in terminal.getvalue()
        assert sys.stdout is not terminal
    assert sys.stdout is sys.stderr is terminal


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch):
    terminal = a_terminal(monkeypatch)
    monkeypatch.setattr(runs, "DELAY", 60.0)
    with progress(4, "searching") as bar:
        bar.update(4)
        bar.set_postfix(loss="0.5")
        print("step 1")
    assert terminal.getvalue() == "step 1\n"


def test_nothing_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    monkeypatch.setattr(runs, "DELAY", 1e-6)
    before = sys.stdout
    with progress(4, "searching") as bar:
        bar.update(4)
        assert sys.stdout is before
    assert sys.__stderr__.getvalue() == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bar.close()


def test_what_cannot_be_counted_is_told_once_it_takes_long(monkeypatch: pytest.MonkeyPatch):
    terminal = a_terminal(monkeypatch)
    with waiting("loading"):
        while "loading ...\r" not in terminal.getvalue():
            time.sleep(0.001)
    print("done")
    assert seen(terminal)[-2] == "done"
    monkeypatch.setattr(runs, "DELAY", 60.0)
    with waiting("quick"):
        pass
    assert "quick" not in terminal.getvalue()
