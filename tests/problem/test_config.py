from __future__ import annotations

from pathlib import Path

import pytest

from das_gym.data.bad_examples import POLICIES
from das_gym.engine import precision
from das_gym.models.transformers import units
from das_gym.problem.config import ON_BAD_EXAMPLE, PRECISIONS, UNITS, ProblemConfig


def test_listed_choices_are_those_that_are_read():
    assert (PRECISIONS, UNITS, ON_BAD_EXAMPLE) == (precision.PRECISIONS, units.UNITS, POLICIES)


@pytest.mark.parametrize("name", ["checkpoint", "data_root"])
def test_missing_path_is_rejected_with_the_download_command(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"`{name}` does not exist: got a/b.*`hf download a/b --local-dir FOLDER`"):
        ProblemConfig("VLM", "answering", **{name: "a/b"})
