"""Questions about a scene: those of Shapes-VQA."""

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
"""By how many pixels each relation holds between objects a and b (y grows downwards); negative: it does not hold."""

OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

RELATION_MARGIN = 16.0
"""Least difference of the coordinates, in pixels, so that a relation is never ambiguous."""

NEAREST_RATIO = 1.4
"""How many times as far away as the nearest object the second nearest is, at least."""


@dataclass(frozen=True)
class Question:
    """A question with its answer; `family` is VQAv2's question_type."""

    text: str
    answer: str
    family: str
    answer_type: str


def attribute_target(rng: np.random.Generator, scene: Scene) -> tuple[str, SceneObject] | None:
    """Draw `color` or `shape`, and an object that its other attribute alone identifies."""
    options = [("color", o) for o in scene.objects if len(scene.matching(shape=o.shape)) == 1]
    options += [("shape", o) for o in scene.objects if len(scene.matching(color=o.color)) == 1]
    return pick(rng, options) if options else None


def absent_name(rng: np.random.Generator, scene: Scene) -> str:
    """Draw a `color shape` that no object of the scene has, from its colours and shapes if possible."""
    present = {o.name for o in scene.objects}
    close = [f"{a.color} {b.shape}" for a in scene.objects for b in scene.objects]
    close = sorted(set(close) - present)
    if close:
        return pick(rng, close)
    return pick(rng, sorted({f"{c} {s}" for c in COLORS for s in SHAPES} - present))


def counted(rng: np.random.Generator, scene: Scene, lowest: int) -> tuple[str, int, tuple[SceneObject, ...]]:
    """Draw a plural such as `red objects` or `circles`, every number as likely; return it with number and objects."""
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


def related_pair(rng: np.random.Generator, scene: Scene) -> tuple[SceneObject, str, SceneObject] | None:
    """Draw two objects with unique names and a relation that clearly holds between them."""
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


def nearest_pair(rng: np.random.Generator, scene: Scene) -> tuple[SceneObject, SceneObject] | None:
    """Draw an object with a unique name, and return the object clearly nearest to it; needs three objects."""
    options = []
    for anchor in scene.unique():
        ranked = sorted((o for o in scene.objects if o is not anchor), key=anchor.distance)
        if len(ranked) >= 2 and anchor.distance(ranked[1]) >= NEAREST_RATIO * anchor.distance(ranked[0]):
            options.append((anchor, ranked[0]))
    return pick(rng, options) if options else None


def _ask_attribute(rng: np.random.Generator, scene: Scene) -> Question | None:
    target = attribute_target(rng, scene)
    if target is None:
        return None
    asked, item = target
    if asked == "color":
        return Question(f"what color is the {item.shape}?", item.color, "attribute", "other")
    return Question(f"what shape is the {item.color} object?", item.shape, "attribute", "other")


def _ask_existence(rng: np.random.Generator, scene: Scene) -> Question:
    there = rng.random() < 0.5
    name = pick(rng, scene.objects).name if there else absent_name(rng, scene)
    return Question(f"is there a {name}?", "yes" if there else "no", "existence", "yes/no")


def _ask_count(rng: np.random.Generator, scene: Scene) -> Question:
    noun, number, _ = counted(rng, scene, lowest=0)
    return Question(f"how many {noun} are there?", str(number), "count", "number")


def _ask_relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    pair = related_pair(rng, scene)
    if pair is None:
        return None
    a, relation, b = pair
    true = rng.random() < 0.5
    asked = relation if true else OPPOSITES[relation]
    return Question(f"is the {a.name} {asked} the {b.name}?", "yes" if true else "no", "relation", "yes/no")


def _ask_nearest(rng: np.random.Generator, scene: Scene) -> Question | None:
    pair = nearest_pair(rng, scene)
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
"""Each draws a question of its family, or returns None where the scene has none."""
