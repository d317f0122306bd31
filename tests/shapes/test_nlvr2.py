"""Shapes-NLVR2 on disk: NLVR2's format, the same for a seed, complete or not at all."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from das_gym.shapes.nlvr2 import write_shapes_nlvr2
from das_gym.shapes.pair_language import STATEMENT_FAMILIES
from das_gym.tasks.nlvr2.files import NLVR2Example, load_nlvr2


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_nlvr2(tmp_path_factory.mktemp("data") / "small", directories=3, directory_sets=5, test_sets=15)


@pytest.mark.parametrize("split", ["train", "test1"])
def test_write_shapes_nlvr2_has_nlvr2s_format(small: Path, split: str):
    entries = lines(small, f"{split}.json")
    extra = {"directory"} if split == "train" else set()
    assert {frozenset(entry) for entry in entries} == {frozenset({"sentence", "label", "identifier", "family"} | extra)}
    numbers = [(n, pair, sentence) for n in range(15) for pair in range(4) for sentence in range(2)]
    assert [entry["identifier"] for entry in entries] == [f"{split}-{n}-{pair}-{s}" for n, pair, s in numbers]
    assert Counter(entry["label"] for entry in entries) == {"True": 60, "False": 60}
    assert {entry["family"] for entry in entries} == set(STATEMENT_FAMILIES)
    if split == "train":
        assert [entry["directory"] for entry in entries] == [str(n // 5) for n, _, _ in numbers]
    paths = sorted((small / "images" / split).rglob("*.png"))
    with Image.open(paths[0]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (96, 96))
    assert len({path.read_bytes() for path in paths}) == len(paths) == 15 * 8


def test_written_data_are_read_back(small: Path):
    splits = load_nlvr2(small)
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
