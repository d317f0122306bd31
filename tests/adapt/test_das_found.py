"""The file in which `adapt das` keeps what it has found, damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from das_gym.adapt.das_experiment import FOUND, read_found

from das_gym.files import write_json

TURN = {"step": 3, "masks": [[0, 1, 1], [1, 1, 0]], "losses": [1.0, 2.0], "rewards": [0.4, 0.1], "preferences": None}
WHOLE: dict[str, Any] = {"mask": [0, 1, 1], "skipped_layers": ["b", "c"], "turns": [TURN]}


def test_a_whole_one_is_read(tmp_path: Path):
    write_json(tmp_path / FOUND, WHOLE)
    found = read_found(tmp_path / FOUND, 2)
    assert np.array(found.mask, dtype=bool).tolist() == [False, True, True]
    assert found.skipped_layers == ("b", "c")


@pytest.mark.parametrize(
    "change",
    [
        {"mask": [0, 2, 1]},
        {"mask": [0, -1, 1]},
        {"mask": [0, 0.5, 1]},
        {"mask": [0, 1]},
        {"mask": [0, 0, 1], "skipped_layers": ["c"]},
        {"mask": "011"},
        {"mask": None},
        {"skipped_layers": [1, 2]},
        {"skipped_layers": ["b"]},
        {"turns": [{}]},
        {"turns": [3]},
        {"turns": {"a": 1}},
        {"turns": [{**TURN, "masks": [[0, 1]]}]},
        {"turns": [{**TURN, "losses": "x"}]},
        {"more": 1},
    ],
)
def test_a_damaged_one_is_named(tmp_path: Path, change: dict[str, Any]):
    write_json(tmp_path / FOUND, {**WHOLE, **change})
    with pytest.raises(ValueError, match=r"found\.json is damaged \(.*\): remove it to search anew"):
        read_found(tmp_path / FOUND, 2)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{}", b"[" * 10_000, b"\xff"])
def test_what_is_no_record_is_named(tmp_path: Path, content: bytes):
    (tmp_path / FOUND).write_bytes(content)
    with pytest.raises(ValueError, match=r"found\.json is"):
        read_found(tmp_path / FOUND, 2)
