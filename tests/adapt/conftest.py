from pathlib import Path

import pytest
from das_gym.adapt.commands import PROGRAM


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `python -m adapt ...` in an empty folder and in this process; returns its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        code = PROGRAM.run(words)
        return code, "".join(capsys.readouterr())

    return run
