"""What commands print: standard streams, bars on a terminal and never within other output, lines otherwise."""

import io
import os
import subprocess
import sys
import time

import pytest

from das_gym.commands.progress import (
    Measurement,
    Phase,
    format_duration,
    format_estimate,
    print_estimate,
    progress,
    show_progress,
)
from das_gym.names import escape_control_chars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal_is_gone_at_the_end(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "__stderr__", terminal)
    with progress(4, "searching", unit="mask") as bar:
        bar.update(2)
        bar.refresh()
    assert "\rsearching:  50%" in terminal.getvalue()
    assert terminal.getvalue().rpartition("\r")[0].split("\r")[-1].strip() == ""


def test_progress_is_silent_where_it_is_not_wanted(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "__stderr__", terminal)
    with show_progress(False), progress(4, "searching") as bar:
        bar.update(4)
    assert terminal.getvalue() == ""


@pytest.fixture
def log_file(monkeypatch) -> io.StringIO:
    """Standard error that is no terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", stream)
    return stream


def test_lines_print_counts_loss_and_times(log_file, monkeypatch):
    monkeypatch.setattr("das_gym.commands.progress.LINE_SECONDS", 1e-9)
    with progress(3, "comparing", unit="training") as outer:
        with progress(300, "fine-tuning, subnet", unit="step", initial=100) as bar:
            bar.set_postfix_str("loss 0.500", refresh=False)
            bar.update(50)
        outer.update(1.5)
    first, last = log_file.getvalue().splitlines()  # and none twice
    assert first.startswith("fine-tuning, subnet: 150/300 steps (50 %), loss 0.500, elapsed 00:00, remaining 00:0")
    assert last.startswith("comparing: 1.5/3 trainings (50 %), elapsed 00:00, remaining 00:0")


def test_lines_are_printed_by_the_main_process_only(log_file, monkeypatch):
    monkeypatch.setattr("das_gym.commands.progress.LINE_SECONDS", 1e-9)
    monkeypatch.setenv("RANK", "1")
    with progress(2, "searching") as bar:
        bar.update()
    assert log_file.getvalue() == ""


PLAIN = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_unencodable_characters_become_question_marks():
    code = "from das_gym.processes import prepare_streams; prepare_streams(); print('a \\u25a0 \\xe9 \\udce9')"
    done = subprocess.run([sys.executable, "-c", code], env=PLAIN, capture_output=True, check=True)
    assert done.stdout.split() == [b"a", b"?", b"?", b"?"]


@pytest.mark.skipif(os.name == "nt", reason="no such shell")
def test_closed_stream_is_not_replaced_by_a_file(tmp_path):
    code = "import os, sys\nfrom das_gym.processes import prepare_streams\nprepare_streams()\n"
    code += "print('a', file=sys.stderr)\nprint('b')\n"
    code += f"assert os.open({str(tmp_path / 'a')!r}, os.O_CREAT | os.O_WRONLY) > 2"
    subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no such pipes")
def test_closed_output_prints_no_traceback(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "das_gym.agents", "with", "env_id=DAS-METER-VQA-Tabular-v0"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command, env=buffered, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "then resume with `python -m das_gym.agents with resume=1`" in done.stderr


def test_control_characters_are_escaped():
    assert escape_control_chars("a\x1b]0;title\x07b\u202ec\udce9\r\nd é") == "a\\x1b]0;title\\x07b\\u202ec\\udce9\\r\nd é"


def test_a_phase_takes_a_whole_batch_where_that_is_fast():
    sizes: list[int] = []
    prepared: list[int] = []
    found = Phase("training", 40, sizes.append, 10, prepare=prepared.append, kept_bytes=lambda: [(6, 9), (6, 100)]).measure()
    assert sizes == prepared == [2, 2, 10, 10, *[10] * 5]
    assert (found.name, found.kept, found.held) == ("training", 3 + 18, 0)  # 24 bytes of 10 examples, at most 9 of the first


def test_a_phase_is_timed_with_fewer_examples_where_they_take_long(monkeypatch):
    monkeypatch.setattr("das_gym.commands.progress.TIMED_SECONDS", 0.1)
    phase = Phase("search", 20, lambda count: time.sleep(0.02 + 0.01 * count), 10, repeats=3.0, example_bytes=7)
    found = phase.measure()
    assert found.held == (10 - 2) * 7
    assert 6 * 0.12 < found.seconds < 6 * 0.3  # what two examples take, times five


def test_an_estimate_adds_what_is_kept_and_the_largest_that_is_held():
    gib = 2**30
    found = [
        Measurement("a", 3599.0, kept=gib, held=4 * gib),
        Measurement("b", 2.0, kept=2 * gib, held=gib),
        Measurement("c", 9e3, is_certain=False),
    ]
    words = "estimate: 1 h 0 min (a 59 min 59 s, b 2 s), c up to 2 h 30 min more, peak memory 6.00 GiB"
    assert format_estimate(found, before=gib) == words


def test_an_estimate_frees_each_phase_before_the_next(capsys):
    print_estimate(Phase(name, 1, lambda _: time.sleep(0.6)) for name in "ab")
    assert capsys.readouterr().out.startswith("estimate: 1 s (a 1 s, b 1 s), peak memory ")
    print_estimate([])
    assert capsys.readouterr().out == "estimate: no model has to run\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59.4, "59 s"), (59.6, "1 min 0 s"), (119.7, "2 min 0 s"), (3599.6, "1 h 0 min"), (12_000, "3 h 20 min")],
)
def test_durations_are_rounded_before_they_are_split(seconds, words):
    assert format_duration(seconds) == words
