"""Shapes-captions: the language, and the data set."""

import json
from pathlib import Path

import numpy as np
import pytest

from das_gym.shapes.captions import (
    CountFact,
    ExistenceFact,
    RelationFact,
    draw_split,
    sample_false_captions,
    sample_scene_caption,
    write_shapes_captions,
)
from das_gym.shapes.scenes import Scene, SeenImages, sample_scene
from das_gym.tasks.retrieval import NUM_TEXTS, load_captions


def clearly_true(fact: RelationFact | ExistenceFact | CountFact, where: Scene) -> bool:
    """Judge a fact by its words alone."""
    words = str(fact).split()
    if isinstance(fact, RelationFact):
        subject, other = " ".join(words[1:3]), " ".join(words[-2:])
        sign = 1 if fact.relation in ("right of", "below") else -1
        axis = "x" if "of" in fact.relation else "y"
        pairs = [(a, b) for a in where.objects for b in where.objects if (a.name, b.name) == (subject, other)]
        return any(sign * (getattr(a, axis) - getattr(b, axis)) >= 16 for a, b in pairs)
    if isinstance(fact, ExistenceFact):
        return " ".join(words[1:]) in {o.name for o in where.objects}
    stem = words[1].removesuffix("es") if words[1] == "crosses" else words[1].rstrip("s")
    return sum(o.color == words[1] if "objects" in words else o.shape == stem for o in where.objects) == int(words[0])


def test_sampled_captions_are_true_and_false_ones_differ_by_a_word():
    rng = np.random.default_rng(0)
    kinds: set[type] = set()
    for _ in range(300):
        where = sample_scene(rng)
        caption = sample_scene_caption(rng, where)
        if caption is None:
            continue
        kinds |= {type(fact) for fact in caption.facts}
        assert all(clearly_true(fact, where) for fact in caption.facts)
        assert caption.may_be_true(where)
        words = str(caption).split()
        false = sample_false_captions(rng, caption, where, 3)
        assert len({str(f) for f in false}) == 3
        for other in false:
            changed = str(other).split()
            assert len(changed) == len(words)
            assert sum(a != b for a, b in zip(words, changed, strict=True)) == 1
            assert not all(clearly_true(fact, where) for fact in other.facts)
            assert not other.may_be_true(where)
    assert kinds == {RelationFact, ExistenceFact, CountFact}


FEW = {"train": 12, "val": 30, "test": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_shapes_captions(tmp_path_factory.mktemp("captions") / "data", seed=3, scenes=FEW)


def read(folder: Path) -> list[dict]:
    return json.loads((folder / "dataset_shapes.json").read_text())["images"]


def test_written_data_are_read_back(folder):
    splits = load_captions(folder, "skip")  # decodes every image
    assert splits.left_out == ()
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [60, 150, 100]
    for example in splits.test[:10]:
        assert len(set(example.texts)) == NUM_TEXTS
        assert example.texts[1:4] == example.hard_negatives
        assert example.image.open().size == (96, 96)


@pytest.mark.parametrize("alone", [True, False])
def test_unique_captions_are_true_of_one_scene(alone):
    drawn = list(draw_split(np.random.default_rng(0), 60, alone, SeenImages()))
    shared = [
        (str(caption), other)
        for number, (_, _, own) in enumerate(drawn)
        for caption in own
        for other in range(len(drawn))
        if other != number and caption.may_be_true(drawn[other][0])
    ]
    assert bool(shared) is not alone  # training scenes may share captions
