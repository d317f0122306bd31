"""Shapes-NLVR2: the statements, and the data set."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_gym.shapes.nlvr2 import STATEMENT_FAMILIES, ScenePair, StatementSet, sample_set, write_shapes_nlvr2
from das_gym.shapes.scenes import Scene
from das_gym.tasks.nlvr2 import NLVR2Example, load_nlvr2
from tests.shapes.judging import objects_named, related, the_one

PER_FAMILY = 100

EXISTENCE = re.compile(r"there is 1 (\w+) (\w+)\.")
SHAPE_IS = re.compile(r"1 (\w+) is (\w+)\.")
OBJECT_IS = re.compile(r"1 (\w+) object is a (\w+)\.")
COUNT = re.compile(r"there are (\d) (.+)\.")
RELATION = re.compile(r"1 (\w+ \w+) is (left of|right of|above|below) a (\w+ \w+)\.")
SAME_COLOR = re.compile(r"the left (\w+) is the color of the right (\w+)\.")
SAME_SHAPE = re.compile(r"the left (\w+) object is the shape of the right (\w+) object\.")


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
        return int(related(m[1], m[2], m[3], scene))
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
def test_truths_are_right(family):
    judged = list(statements(family))
    assert len(judged) >= 4 * PER_FAMILY
    for text, pair, truth in judged:
        assert holds(text, pair.left, pair.right) is truth, (text, pair)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_shapes_nlvr2(tmp_path_factory.mktemp("data") / "small", directories=3, directory_sets=5, test_sets=15)


def test_written_data_are_read_back(small):
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
