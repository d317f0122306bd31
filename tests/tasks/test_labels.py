from __future__ import annotations

from pathlib import Path

import pytest

from das_gym.tasks.labels import read_labels, write_labels


def test_a_vocabulary_is_read_back(tmp_path: Path):
    write_labels(tmp_path / "answers.json", ("yes", "café", "2"))
    assert read_labels(tmp_path / "answers.json") == ("yes", "café", "2")
    (tmp_path / "plain.json").write_text('["yes", "no"]')
    assert read_labels(tmp_path / "plain.json") == ("yes", "no")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"answers": ["a", "b"]}', "must be a list of texts"),
        ("[1, 2]", "must be a list of texts"),
        ('["a", "b", "a"]', "'a' occurs twice; it needs at least two, each once"),
        ('["a"]', "it has 1 answers; it needs at least two"),
    ],
)
def test_what_is_no_vocabulary(tmp_path: Path, text: str, message: str):
    (tmp_path / "answers.json").write_text(text)
    with pytest.raises(ValueError, match=rf"answers\.json is no answer vocabulary: .*{message}"):
        read_labels(tmp_path / "answers.json")
