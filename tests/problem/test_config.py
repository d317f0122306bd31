from __future__ import annotations

from pathlib import Path

import pytest

from das_gym.data.bad_examples import POLICIES
from das_gym.engine import precision
from das_gym.models.transformers import units
from das_gym.problem.config import ON_BAD_EXAMPLE, PRECISIONS, UNITS, ProblemConfig


def test_listed_choices_are_those_that_are_read():
    assert (PRECISIONS, UNITS, ON_BAD_EXAMPLE) == (precision.PRECISIONS, units.UNITS, POLICIES)


def test_hub_id_as_model_is_rejected_with_the_download_command():
    with pytest.raises(ValueError, match=r"`model`.*hf download a/b --local-dir FOLDER`, then give checkpoint=FOLDER"):
        ProblemConfig("a/b", "answering")


@pytest.mark.parametrize(
    ("name", "command"),
    [("checkpoint", "hf download a/b --local-dir"), ("data_root", "hf download --repo-type dataset a/b --local-dir")],
)
def test_hub_id_is_rejected_with_the_download_command(name: str, command: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"`{name}` is not a file or folder: got a/b.*{command}"):
        ProblemConfig("VLM", "answering", **{name: "a/b"})
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match=f"`{name}` does not exist"):
        ProblemConfig("VLM", "answering", **{name: "a/b"})
