"""Shapes-captions: Karpathy's format, and captions that distinguish images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from das_gym.shapes.captions import draw_split, write_shapes_captions
from das_gym.shapes.writing import NewImages
from das_gym.tasks.retrieval.captions import NUM_TEXTS
from das_gym.tasks.retrieval.files import load_captions

FEW = {"train": 12, "val": 30, "test": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_captions(tmp_path_factory.mktemp("captions") / "data", seed=3, scenes=FEW)


def read(folder: Path) -> list[dict]:
    return json.loads((folder / "dataset_shapes.json").read_text())["images"]


def test_written_data_are_read_back(folder: Path):
    splits = load_captions(folder, "skip")  # decodes every image
    assert splits.left_out == ()
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [60, 150, 100]
    for example in splits.test[:10]:
        assert len(set(example.texts)) == NUM_TEXTS
        assert example.texts[1:4] == example.hard_negatives
        assert example.image.open().size == (96, 96)


@pytest.mark.parametrize("alone", [True, False])
def test_unique_captions_are_true_of_one_scene(alone: bool):
    drawn = list(draw_split(np.random.default_rng(0), 60, alone, NewImages()))
    shared = [
        (str(caption), other)
        for number, (_, _, own) in enumerate(drawn)
        for caption in own
        for other in range(len(drawn))
        if other != number and caption.may_be_true(drawn[other][0])
    ]
    assert bool(shared) is not alone  # training scenes may share captions
