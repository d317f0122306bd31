"""Ctrl-C and SIGTERM: exit codes, no traceback, and runs that resume."""

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from das_gym.adapt.commands import PROGRAM
from das_gym.agents.ask_tell.bandit import Bandit

from das_gym.files import read_json
from das_gym.processes import Terminated
from tests.processes import start, stop_when


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "words", "library"),
    [
        (signal.SIGINT, 130, "agents", "gymnasium"),  # the first import of das_gym itself
        (signal.SIGTERM, 143, "agents with meter_vqa_table", "sacred"),
        (signal.SIGHUP, 129, "adapt supernet", "safetensors"),
    ],
)
def test_signal_during_imports_ends_the_process(number, code, words, library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{library}.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    process = start(f"python -m das_gym.{words}")
    error = process.communicate(timeout=60)[1]
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("Stopped")
    assert process.returncode == code


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_custom_program_keeps_its_handlers(name, tmp_path):
    code = f"import signal; handler = lambda *_: None; signal.signal(signal.{name}, handler)\n"
    code += "import das_gym.commands.commandline; das_gym.processes.raise_interrupts()\n"
    code += f"assert signal.getsignal(signal.{name}) is handler"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


IN_A_COMMAND = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
from das_gym.processes import Terminated, end_on_signals, raise_interrupts
end_on_signals()
raise_interrupts()
"""


@pytest.mark.parametrize(
    "code",
    [
        "assert signal.getsignal(signal.SIGHUP) is signal.getsignal(signal.SIGINT) is signal.SIG_IGN",
        "child = os.fork()\n"
        "if child == 0: assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL; os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0",
        "try: os.kill(os.getpid(), signal.SIGTERM)\nexcept Terminated: os.kill(os.getpid(), signal.SIGTERM); print('ended')",
    ],
    ids=["ignored signals stay ignored", "forks have default handlers", "a repeated signal counts once"],
)
def test_handlers_of_a_command(code, tmp_path):
    subprocess.run([sys.executable, "-c", IN_A_COMMAND + code], cwd=tmp_path, check=True)


ON_A_TERMINAL = """
from pathlib import Path
from das_gym.commands.progress import progress
try:
    with progress(1000, "searching") as bar:
        print("started", end="")
        Path("started").touch()
        while True: bar.update()
except KeyboardInterrupt as interrupt:
    print("Stopped", file=sys.stderr, flush=True)
    sys.exit(interrupt.exit_code)
"""


def test_closed_terminal_does_not_fail_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", IN_A_COMMAND.replace("SIGHUP", "SIGINT") + ON_A_TERMINAL])
    while not Path("started").exists():
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129


@pytest.fixture
def training(bare_kwargs, tmp_path, monkeypatch) -> str:
    """A training of some seconds, as it is typed."""
    monkeypatch.chdir(tmp_path)
    data = [f"{name}={value}" for name, value in bare_kwargs.items()]
    return " ".join(["python -m adapt supernet with", *data, "train.steps=30 train.save_every=5 train.batch_size=4"])


@pytest.mark.slow
def test_sigterm_training_resumes_to_the_same_weights(training, tmp_path):
    runs = tmp_path / "runs"
    assert PROGRAM.run(shlex.split(training)[3:]) == 0
    process = start(training)
    error = stop_when(process, lambda: any((runs / "2").glob("*.pt")), signal.SIGTERM, signal.SIGTERM)
    assert process.returncode == 143, error
    assert read_json(runs / "2" / "run.json")["status"] == "INTERRUPTED"
    assert "Traceback" not in error
    command = re.search(r"^Stopped by SIGTERM\. Resume with: (.*)$", error, re.MULTILINE)
    assert command is not None, error
    assert PROGRAM.run(shlex.split(command[1])[3:]) == 0
    one, two = ((runs / run / "supernet.safetensors").read_bytes() for run in ("1", "2"))
    assert one == two


@pytest.mark.slow
def test_interrupted_adapt_search_says_how_to_continue(small_kwargs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked: list[int] = []

    def ask(self: Bandit, n: int) -> Any:
        asked.append(n)
        if len(asked) == 3:
            raise Terminated(signal.SIGTERM)
        return original(self, n)

    original = Bandit.ask
    monkeypatch.setattr(Bandit, "ask", ask)
    data = " ".join(f"{name}={value}" for name, value in small_kwargs.items())
    words = shlex.split(f"with bandit train.steps=7 {data} 'runs_dir=my runs' search.evaluations=60")
    assert PROGRAM.run(words) == 143
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == "Stopped by SIGTERM. Resume with: das-adapt with resume=1 'runs_dir=my runs'"
