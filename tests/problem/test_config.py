from __future__ import annotations

from pathlib import Path

import pytest

from das_gym.data.bad_examples import POLICIES
from das_gym.engine import precision
from das_gym.models.transformers import units
from das_gym.problem.config import ON_BAD_EXAMPLE, PRECISIONS, UNITS, ProblemConfig


def test_listed_choices_are_those_that_are_read():
    assert (PRECISIONS, UNITS, ON_BAD_EXAMPLE) == (precision.PRECISIONS, units.UNITS, POLICIES)


@pytest.mark.parametrize(
    ("name", "setting", "command"),
    [
        ("model", "checkpoint", "hf download a/b"),
        ("checkpoint", "checkpoint", "hf download a/b"),
        ("data_root", "data_root", "hf download --repo-type dataset a/b"),
    ],
)
def test_hub_id_is_rejected_with_the_download_command(name, setting, command, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"`{name}`.*got a/b.*`{command} --local-dir .*{setting}=FOLDER"
    ):
        ProblemConfig(**{"model": "VLM", "task": "answering", name: "a/b"})
    if name != "model":  # commands make paths absolute first
        with pytest.raises(FileNotFoundError, match=command):
            ProblemConfig(**{"model": "VLM", "task": "answering", name: str(tmp_path / "a" / "b")})


def test_missing_path_is_no_hub_id(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for path in ("a/b", "/a/b"):
        with pytest.raises(FileNotFoundError, match=r"`data_root` does not exist.*for the bundled one\.$"):
            ProblemConfig("VLM", "answering", data_root=path)
