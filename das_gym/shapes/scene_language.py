"""What is asked and said about a scene: the questions and captions of Shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from das_gym.shapes.scenes import COLORS, SHAPES, Scene, SceneObject, pick, plural

RELATIONS: dict[str, Callable[[SceneObject, SceneObject], float]] = {
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}
"""By how many pixels each relation holds between objects a and b (y grows downwards); negative where it does not."""

OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

RELATION_MARGIN = 16.0
"""Least difference of the coordinates in question, in pixels: a relation is never a close call."""

NEAREST_RATIO = 1.4
"""The second nearest object is at least this many times as far away as the nearest."""


@dataclass(frozen=True)
class Question:
    """A question with its one answer; `family` is VQAv2's question_type."""

    text: str
    answer: str
    family: str
    answer_type: str


@dataclass(frozen=True)
class Caption:
    """A sentence that is true of a scene, its false twin, and the objects it speaks of.

    Attributes:
        text: The true sentence.
        false_text: The sentence with one phrase changed, false of the scene.
        subjects, others: Indices into `scene.objects`: what the sentence is about, and what it
            is compared with.
    """

    text: str
    false_text: str
    subjects: tuple[int, ...]
    others: tuple[int, ...] = ()


def _attribute_target(rng: np.random.Generator, scene: Scene) -> tuple[str, SceneObject] | None:
    """`color` or `shape`, and an object that its other attribute alone identifies."""
    options = [("color", o) for o in scene.objects if len(scene.matching(shape=o.shape)) == 1]
    options += [("shape", o) for o in scene.objects if len(scene.matching(color=o.color)) == 1]
    return pick(rng, options) if options else None


def _absent_name(rng: np.random.Generator, scene: Scene) -> str:
    """`color shape` of no object, put together from colours and shapes that are there if possible."""
    present = {o.name for o in scene.objects}
    close = [f"{a.color} {b.shape}" for a in scene.objects for b in scene.objects]
    close = sorted(set(close) - present)
    if close:
        return pick(rng, close)
    return pick(rng, sorted({f"{c} {s}" for c in COLORS for s in SHAPES} - present))


def _counted(rng: np.random.Generator, scene: Scene, lowest: int) -> tuple[str, int, tuple[SceneObject, ...]]:
    """A plural such as `red objects` or `circles`, how many there are, and which; every number is as likely."""
    groups: dict[int, list[tuple[str, tuple[SceneObject, ...]]]] = {}
    for color in COLORS:
        found = scene.matching(color=color)
        groups.setdefault(len(found), []).append((f"{color} objects", found))
    for shape in SHAPES:
        found = scene.matching(shape=shape)
        groups.setdefault(len(found), []).append((plural(shape), found))
    number = pick(rng, sorted(n for n in groups if n >= lowest))
    noun, found = pick(rng, groups[number])
    return noun, number, found


def _related_pair(rng: np.random.Generator, scene: Scene) -> tuple[SceneObject, str, SceneObject] | None:
    """Two objects with unique names and a relation that clearly holds between them."""
    unique = scene.unique()
    options = []
    for a in unique:
        for b in unique:
            if a is b:
                continue
            if abs(a.x - b.x) >= RELATION_MARGIN:
                options.append((a, "left of" if a.x < b.x else "right of", b))
            if abs(a.y - b.y) >= RELATION_MARGIN:
                options.append((a, "above" if a.y < b.y else "below", b))
    return pick(rng, options) if options else None


def _nearest_pair(rng: np.random.Generator, scene: Scene) -> tuple[SceneObject, SceneObject] | None:
    """An object with a unique name, and the object clearly nearest to it; needs three objects."""
    options = []
    for anchor in scene.unique():
        ranked = sorted((o for o in scene.objects if o is not anchor), key=anchor.distance)
        if len(ranked) >= 2 and anchor.distance(ranked[1]) >= NEAREST_RATIO * anchor.distance(ranked[0]):
            options.append((anchor, ranked[0]))
    return pick(rng, options) if options else None


def _ask_attribute(rng: np.random.Generator, scene: Scene) -> Question | None:
    target = _attribute_target(rng, scene)
    if target is None:
        return None
    asked, item = target
    if asked == "color":
        return Question(f"what color is the {item.shape}?", item.color, "attribute", "other")
    return Question(f"what shape is the {item.color} object?", item.shape, "attribute", "other")


def _ask_existence(rng: np.random.Generator, scene: Scene) -> Question:
    there = rng.random() < 0.5
    name = pick(rng, scene.objects).name if there else _absent_name(rng, scene)
    return Question(f"is there a {name}?", "yes" if there else "no", "existence", "yes/no")


def _ask_count(rng: np.random.Generator, scene: Scene) -> Question:
    noun, number, _ = _counted(rng, scene, lowest=0)
    return Question(f"how many {noun} are there?", str(number), "count", "number")


def _ask_relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    pair = _related_pair(rng, scene)
    if pair is None:
        return None
    a, relation, b = pair
    true = rng.random() < 0.5
    asked = relation if true else OPPOSITES[relation]
    return Question(f"is the {a.name} {asked} the {b.name}?", "yes" if true else "no", "relation", "yes/no")


def _ask_nearest(rng: np.random.Generator, scene: Scene) -> Question | None:
    pair = _nearest_pair(rng, scene)
    if pair is None:
        return None
    anchor, nearest = pair
    if rng.random() < 0.5:
        return Question(f"what color is the object nearest to the {anchor.name}?", nearest.color, "nearest", "other")
    return Question(f"what shape is nearest to the {anchor.name}?", nearest.shape, "nearest", "other")


QUESTION_FAMILIES: dict[str, Callable[[np.random.Generator, Scene], Question | None]] = {
    "attribute": _ask_attribute,
    "existence": _ask_existence,
    "count": _ask_count,
    "relation": _ask_relation,
    "nearest": _ask_nearest,
}
"""Each asks one question of its family, or returns None where the scene has nothing to ask about."""


def _index(scene: Scene, *items: SceneObject) -> tuple[int, ...]:
    return tuple(i for i, o in enumerate(scene.objects) if any(o is item for item in items))


def _say_attribute(rng: np.random.Generator, scene: Scene) -> Caption | None:
    target = _attribute_target(rng, scene)
    if target is None:
        return None
    asked, item = target
    if asked == "color":
        wrong = pick(rng, [c for c in COLORS if c != item.color])
        return Caption(f"the {item.shape} is {item.color}.", f"the {item.shape} is {wrong}.", _index(scene, item))
    wrong = pick(rng, [s for s in SHAPES if s != item.shape])
    return Caption(
        f"the {item.color} object is a {item.shape}.", f"the {item.color} object is a {wrong}.", _index(scene, item)
    )


def _say_existence(rng: np.random.Generator, scene: Scene) -> Caption:
    item = pick(rng, scene.objects)
    others = scene.matching(item.color, item.shape)
    return Caption(f"there is a {item.name}.", f"there is a {_absent_name(rng, scene)}.", _index(scene, *others))


def _say_count(rng: np.random.Generator, scene: Scene) -> Caption:
    noun, number, found = _counted(rng, scene, lowest=0)
    wrong = pick(rng, [n for n in range(max(0, number - 1), number + 3) if n != number])
    return Caption(f"there are {number} {noun}.", f"there are {wrong} {noun}.", _index(scene, *found))


def _say_relation(rng: np.random.Generator, scene: Scene) -> Caption | None:
    pair = _related_pair(rng, scene)
    if pair is None:
        return None
    a, relation, b = pair
    true, false = (f"the {a.name} is {word} the {b.name}." for word in (relation, OPPOSITES[relation]))
    return Caption(true, false, _index(scene, a), _index(scene, b))


def _say_nearest(rng: np.random.Generator, scene: Scene) -> Caption | None:
    pair = _nearest_pair(rng, scene)
    if pair is None:
        return None
    anchor, nearest = pair
    others = [o for o in scene.objects if o is not anchor and o.name != nearest.name]
    if not others:
        return None
    wrong = pick(rng, others)
    start = f"nearest to the {anchor.name} is a"
    return Caption(f"{start} {nearest.name}.", f"{start} {wrong.name}.", _index(scene, nearest), _index(scene, anchor))


CAPTION_FAMILIES: dict[str, Callable[[np.random.Generator, Scene], Caption | None]] = {
    "attribute": _say_attribute,
    "existence": _say_existence,
    "count": _say_count,
    "relation": _say_relation,
    "nearest": _say_nearest,
}
"""Each says one sentence of its family, or returns None where the scene offers none."""
