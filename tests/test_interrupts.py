from __future__ import annotations

import subprocess
import sys

import pytest

from das_gym.commandline import Command, Program


@pytest.mark.slow
@pytest.mark.parametrize("library", ["gymnasium", "torch", "sacred"])
@pytest.mark.parametrize("words", [["agents", "with", "meter_vqa_table"], ["adapt", "supernet"]])
def test_ctrl_c_while_libraries_are_imported_is_no_traceback(words, library, tmp_path):
    (tmp_path / f"{library}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", f"das_gym.{words[0]}", *words[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_a_program_of_ones_own_keeps_its_ctrl_c(tmp_path):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
    code += "import das_gym; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_ctrl_c_in_a_command_that_keeps_no_run():
    def interrupt(words):
        raise KeyboardInterrupt

    program = Program("agents", {"wait": Command(lambda: interrupt, "", "waits")}, main="wait")
    assert program.run(["wait"]) == 130
