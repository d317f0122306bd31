"""Statements of Shapes-NLVR2, each judged again from the words and the scenes alone by `holds` and `measure`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import pytest

from das_gym.shapes.pair_language import STATEMENT_FAMILIES, ScenePair, StatementSet, sample_set
from das_gym.shapes.scene_language import OPPOSITES, RELATION_MARGIN
from das_gym.shapes.scenes import Scene, SceneObject

PER_FAMILY = 100

EXISTENCE = re.compile(r"there is 1 (\w+) (\w+)\.")
SHAPE_IS = re.compile(r"1 (\w+) is (\w+)\.")
OBJECT_IS = re.compile(r"1 (\w+) object is a (\w+)\.")
COUNT = re.compile(r"there are (\d) (.+)\.")
RELATION = re.compile(r"1 (\w+ \w+) is (left of|right of|above|below) a (\w+ \w+)\.")
SAME_COLOR = re.compile(r"the left (\w+) is the color of the right (\w+)\.")
SAME_SHAPE = re.compile(r"the left (\w+) object is the shape of the right (\w+) object\.")


def the_one(found: list[SceneObject]) -> SceneObject:
    (item,) = found
    return item


def objects_named(plural: str, scene: Scene) -> list[SceneObject]:
    if plural.endswith(" objects"):
        return [o for o in scene.objects if o.color == plural.removesuffix(" objects")]
    return [o for o in scene.objects if plural.startswith(o.shape)]


def related(a: SceneObject, words: str, b: SceneObject) -> bool:
    distance = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    assert max(distance[words], distance[OPPOSITES[words]]) >= RELATION_MARGIN, "ambiguous"
    return distance[words] > 0


def measure(sentence: str, scene: Scene) -> str | int:
    """All that one scene says about a sentence: a number, a colour or a shape."""
    objects = scene.objects
    if m := EXISTENCE.fullmatch(sentence):
        return sum(o.name == f"{m[1]} {m[2]}" for o in objects)
    if m := SHAPE_IS.fullmatch(sentence):
        return int(the_one([o for o in objects if o.shape == m[1]]).color == m[2])
    if m := OBJECT_IS.fullmatch(sentence):
        return int(the_one([o for o in objects if o.color == m[1]]).shape == m[2])
    if m := COUNT.fullmatch(sentence):
        return len(objects_named(m[2], scene))
    if m := RELATION.fullmatch(sentence):
        a, b = (the_one([o for o in objects if o.name == name]) for name in (m[1], m[3]))
        return int(related(a, m[2], b))
    if m := SAME_COLOR.fullmatch(sentence):
        assert m[1] == m[2]
        return the_one([o for o in objects if o.shape == m[1]]).color
    m = SAME_SHAPE.fullmatch(sentence)
    assert m, sentence
    assert m[1] == m[2]
    return the_one([o for o in objects if o.color == m[1]]).shape


def holds(sentence: str, left: Scene, right: Scene) -> bool:
    a, b = measure(sentence, left), measure(sentence, right)
    if m := COUNT.fullmatch(sentence):
        return int(a) + int(b) == int(m[1])
    if sentence.startswith("the left "):
        return a == b
    return int(a) + int(b) == 1


@cache
def sets() -> list[StatementSet]:
    """Sets of all combinations of families, PER_FAMILY statements or more of each."""
    families = list(combinations_with_replacement(STATEMENT_FAMILIES, 2))
    rng = np.random.default_rng(3)
    return [sample_set(rng, pair) for _ in range(PER_FAMILY // 6 + 1) for pair in families]


def statements(family: str | None = None) -> Iterator[tuple[str, ScenePair, bool]]:
    """Text, pair and truth of every statement of a family."""
    for drawn in sets():
        for number, statement in enumerate(drawn.statements):
            if family in (None, statement.family):
                yield from ((statement.text, pair, pair.truths[number]) for pair in drawn.pairs)


@pytest.mark.slow
@pytest.mark.parametrize("family", STATEMENT_FAMILIES)
def test_truths_are_right(family: str):
    judged = list(statements(family))
    assert len(judged) >= 4 * PER_FAMILY
    for text, pair, truth in judged:
        assert holds(text, pair.left, pair.right) is truth, (text, pair)
