"""Progress: bars on a terminal, never within other output; lines otherwise."""

from __future__ import annotations

import io
import sys

import pytest

from das_gym.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard output and errors of a terminal, on which bars are seen at once; no fixture, since pytest replaces them."""
    screen = Terminal()
    for name in ("stdout", "stderr", "__stderr__"):
        monkeypatch.setattr(sys, name, screen)
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


def test_output_is_printed_above_the_bars(monkeypatch: pytest.MonkeyPatch):
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
    assert "\rsearching:  50%" in terminal.getvalue()
    assert not any("searching" in line for line in seen(terminal))  # the bar disappears
    assert seen(terminal)[-2] == "done"
    assert sys.stdout is terminal


@pytest.fixture
def log_file(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error that is no terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", stream)
    return stream


def test_lines_print_counts_loss_and_times(log_file: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("das_gym.progress.PAUSE", 1e-9)
    with progress(3, "comparing", unit="training") as outer:
        with progress(300, "fine-tuning, subnet", unit="step", initial=100) as bar:
            bar.set_postfix_str("loss 0.500", refresh=False)
            bar.update(50)
        outer.update(1.5)
    first, second, last = log_file.getvalue().splitlines()
    assert first.startswith("fine-tuning, subnet: 150/300 steps (50 %), loss 0.500, elapsed 00:00, remaining 00:0")
    assert second.startswith("comparing: 1.5/3 trainings (50 %), elapsed 00:00, remaining 00:0")
    assert last.startswith("comparing: 1.5/3 trainings")


def test_lines_are_printed_by_the_main_process_only(log_file: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("das_gym.progress.PAUSE", 1e-9)
    monkeypatch.setenv("RANK", "1")
    with progress(2, "searching") as bar:
        bar.update()
    assert log_file.getvalue() == ""
