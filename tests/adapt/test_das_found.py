"""The file in which `adapt das` keeps what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from das_gym.adapt.das_experiment import FOUND, read_joint_search

from das_gym.files import write_json

TURN = {"step": 3, "masks": [[0, 1, 1], [1, 1, 0]], "losses": [1.0, 2.0], "rewards": [0.4, 0.1], "preferences": None}
CONTENT: dict[str, Any] = {"mask": [0, 1, 1], "skipped_layers": ["b", "c"], "turns": [TURN]}


def test_read_joint_search_returns_the_mask(tmp_path: Path):
    write_json(tmp_path / FOUND, CONTENT)
    found = read_joint_search(tmp_path / FOUND)
    assert (found.mask, found.skipped_layers) == ((0, 1, 1), ("b", "c"))


@pytest.mark.parametrize(
    "change",
    [
        {"mask": None},
        {"skipped_layers": "b"},
        {"turns": [{**TURN, "losses": "x"}]},
    ],
)
def test_read_joint_search_names_a_damaged_file(tmp_path: Path, change: dict[str, Any]):
    write_json(tmp_path / FOUND, {**CONTENT, **change})
    with pytest.raises(ValueError, match=r"found\.json is damaged"):
        read_joint_search(tmp_path / FOUND)
