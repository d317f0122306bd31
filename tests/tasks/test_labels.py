from __future__ import annotations

from pathlib import Path

import pytest

from das_gym.tasks.labels import read_labels, write_labels


def test_labels_are_read_back(tmp_path: Path):
    write_labels(tmp_path / "answers.json", ("yes", "café", "2"))
    assert read_labels(tmp_path / "answers.json") == ("yes", "café", "2")
    (tmp_path / "plain.json").write_text('["yes", "no"]')
    assert read_labels(tmp_path / "plain.json") == ("yes", "no")


@pytest.mark.parametrize("text", ['{"answers": ["a", "b"]}', "[1, 2]", '["a", "b", "a"]', '["a"]'])
def test_read_labels_rejects_another_file(tmp_path: Path, text: str):
    (tmp_path / "answers.json").write_text(text)
    with pytest.raises(ValueError, match=r"answers\.json is not an answer vocabulary"):
        read_labels(tmp_path / "answers.json")
