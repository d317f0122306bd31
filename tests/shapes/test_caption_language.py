"""Captions of scenes laid out by hand, and of many drawn ones."""

from __future__ import annotations

import numpy as np
import pytest

from das_gym.shapes.caption_language import (
    CountFact,
    ExistenceFact,
    ObjectName,
    RelationFact,
    sample_false,
    sample_scene_caption,
)
from das_gym.shapes.scenes import Scene, SceneObject, sample_scene

RED, BLUE, GREEN = ObjectName("red", "circle"), ObjectName("blue", "star"), ObjectName("green", "cross")


def scene(*objects: tuple[ObjectName, float, float]) -> Scene:
    return Scene(tuple(SceneObject(name.color, name.shape, x, y, 10.0) for name, x, y in objects), background=200)


SCENE = scene((RED, 20, 20), (BLUE, 60, 25), (GREEN, 60, 80), (ObjectName("red", "cross"), 20, 80))


@pytest.mark.parametrize(
    ("fact", "text", "true"),
    [
        (RelationFact(RED, "left of", BLUE), "a red circle left of a blue star", True),
        (RelationFact(RED, "right of", BLUE), "a red circle right of a blue star", False),
        (RelationFact(BLUE, "above", GREEN), "a blue star above a green cross", True),
        (RelationFact(RED, "above", BLUE), "a red circle above a blue star", True),
        (RelationFact(RED, "below", BLUE), "a red circle below a blue star", True),  # by less than the margin: nearly true
        (RelationFact(RED, "left of", ObjectName("black", "star")), "a red circle left of a black star", False),
        (ExistenceFact(GREEN), "a green cross", True),
        (ExistenceFact(ObjectName("green", "star")), "a green star", False),
        (CountFact(2, color="red"), "2 red objects", True),
        (CountFact(3, color="red"), "3 red objects", False),
        (CountFact(2, shape="cross"), "2 crosses", True),
        (CountFact(2, shape="star"), "2 stars", False),
    ],
)
def test_facts_by_hand(fact: RelationFact | ExistenceFact | CountFact, text: str, true: bool):
    assert str(fact) == text
    assert fact.maybe(SCENE) is true


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
        assert caption.maybe(where)
        words = str(caption).split()
        false = sample_false(rng, caption, where, 3)
        assert len({str(f) for f in false}) == 3
        for other in false:
            changed = str(other).split()
            assert len(changed) == len(words)
            assert sum(a != b for a, b in zip(words, changed, strict=True)) == 1
            assert not all(clearly_true(fact, where) for fact in other.facts)
            assert not other.maybe(where)
    assert kinds == {RelationFact, ExistenceFact, CountFact}
