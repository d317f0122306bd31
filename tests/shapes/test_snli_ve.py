"""Shapes-SNLI-VE: labels that follow from the image, SNLI-VE's format, the same for a seed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from das_gym.shapes.captions import CountFact, ExistenceFact, ObjectName, RelationFact, SceneCaption
from das_gym.shapes.scenes import Scene, SceneObject
from das_gym.shapes.snli_ve import HYPOTHESES, hypothesis_label, write_shapes_snli_ve
from das_gym.tasks.snli_ve import LABELS, load_snli_ve

SMALL = {"train": 30, "dev": 5, "test": 5}


def lines(folder: Path, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"snli_ve_{part}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_shapes_snli_ve(tmp_path_factory.mktemp("data") / "small", scenes=SMALL)


RED, BLUE = ObjectName("red", "circle"), ObjectName("blue", "star")
SCENE = Scene(tuple(SceneObject(*name, x, 48, 10) for name, x in ((("red", "circle"), 20), (("red", "cross"), 50))), 200)


@pytest.mark.parametrize(
    ("fact", "is_true", "open_view", "curtained"),
    [
        (ExistenceFact(RED), True, "entailment", "entailment"),
        (ExistenceFact(BLUE), False, "contradiction", "neutral"),
        (RelationFact(RED, "left of", ObjectName("red", "cross")), True, "entailment", "entailment"),
        (RelationFact(BLUE, "left of", RED), False, "contradiction", "neutral"),
        (CountFact(2, color="red"), True, "entailment", "neutral"),
        (CountFact(3, color="red"), False, "contradiction", "neutral"),
        (CountFact(1, color="red"), False, "contradiction", "contradiction"),
    ],
)
def test_label_of(fact, is_true, open_view, curtained):
    caption = SceneCaption((fact,))
    assert caption.may_be_true(SCENE) is is_true
    assert hypothesis_label(caption, is_true, SCENE, curtain=False) == open_view
    assert hypothesis_label(caption, is_true, SCENE, curtain=True) == curtained


def test_write_shapes_snli_ve_has_snli_ves_format(small):
    splits = load_snli_ve(small)
    for part, read in {"train": splits.train, "dev": splits.reward, "test": splits.test}.items():
        entries = lines(small, part)
        assert len(read) == len(entries) == SMALL[part] * HYPOTHESES
        assert [(e.key, e.hypothesis, LABELS[e.label]) for e in read] == [
            (row["pairID"], row["sentence2"], row["gold_label"]) for row in entries
        ]
    assert min(Counter(e.label for e in splits.train).values()) >= 12
    assert len(list((small / "flickr30k_images").iterdir())) == sum(SMALL.values())
