"""Shapes-NLVR2 on disk: NLVR2's format, the same for a seed, complete or not at all."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from das_gym.shapes.nlvr2 import write_shapes_nlvr2
from das_gym.tasks.nlvr2.files import NLVR2Example, load_nlvr2


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_nlvr2(tmp_path_factory.mktemp("data") / "small", directories=3, directory_sets=5, test_sets=15)


def test_written_data_are_read_back(small: Path):
    splits = load_nlvr2(small, "skip")  # decodes every image
    assert splits.left_out == ()
    assert (len(splits.train), len(splits.reward), len(splits.test)) == (80, 40, 120)
    labels = {entry["identifier"]: entry["label"] for entry in lines(small, "test1.json")}
    assert {example.identifier: str(example.label) for example in splits.test} == labels
    by_sentence: defaultdict[str, list[NLVR2Example]] = defaultdict(list)
    for example in splits.test:
        by_sentence[example.set_id].append(example)
    assert len(by_sentence) == 30
    for examples in by_sentence.values():
        assert len({example.sentence for example in examples}) == 1
        assert Counter(example.label for example in examples) == {True: 2, False: 2}
