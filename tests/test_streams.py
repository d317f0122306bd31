from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from das_gym.output import escape_control_chars

PLAIN = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_unencodable_characters_become_question_marks():
    code = "from das_gym.output import prepare_streams; prepare_streams(); print('a \\u25a0 \\xe9 \\udce9')"
    done = subprocess.run([sys.executable, "-c", code], env=PLAIN, capture_output=True, check=True)
    assert done.stdout.split() == [b"a", b"?", b"?", b"?"]


@pytest.mark.skipif(os.name == "nt", reason="no such shell")
def test_closed_stream_is_not_replaced_by_a_file(tmp_path: Path):
    code = "import os, sys\nfrom das_gym.output import prepare_streams\nprepare_streams()\n"
    code += "print('a', file=sys.stderr)\nprint('b')\n"
    code += f"assert os.open({str(tmp_path / 'a')!r}, os.O_CREAT | os.O_WRONLY) > 2"
    subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no such pipes")
def test_closed_output_prints_no_traceback(tmp_path: Path):
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
