from __future__ import annotations

from pathlib import Path

import pytest
from das_gym.adapt.commands import main


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `python -m adapt ...` in an empty folder and in this process; returns its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(["adapt", *words])
        return end.value.code or 0, "".join(capsys.readouterr())

    return run
