"""Captions of scenes laid out by hand, and of many drawn ones."""

from __future__ import annotations

import numpy as np

from das_gym.shapes.caption_language import (
    CountFact,
    ExistenceFact,
    RelationFact,
    sample_false,
    sample_scene_caption,
)
from das_gym.shapes.scenes import Scene, sample_scene


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
        false = sample_false(rng, caption, where, 3)
        assert len({str(f) for f in false}) == 3
        for other in false:
            changed = str(other).split()
            assert len(changed) == len(words)
            assert sum(a != b for a, b in zip(words, changed, strict=True)) == 1
            assert not all(clearly_true(fact, where) for fact in other.facts)
            assert not other.may_be_true(where)
    assert kinds == {RelationFact, ExistenceFact, CountFact}
