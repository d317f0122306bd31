"""Questions about a scene, and the objects that their words name."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from das_gym.shapes.scene_language import QUESTION_FAMILIES, Question
from das_gym.shapes.scenes import COLORS, SHAPES, Scene, SceneObject

INSTRUCTION = "\nAnswer the question using a single word or phrase."
"""Follows a question."""

AGAIN = ("count", "relation", "nearest", "nearest")
MORE = 3
"""Number of further questions drawn from these families, which are the hardest to learn."""

_MENTION = re.compile(rf"\b(?:({'|'.join(COLORS)}) )?(?:({'|'.join(SHAPES)})(?:es|s)?|objects?)\b")


def draw_questions(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """Draw a question of each family that the scene offers, and more of the hard ones."""
    families = [*QUESTION_FAMILIES, *(AGAIN[i] for i in rng.integers(len(AGAIN), size=MORE))]
    asked = (QUESTION_FAMILIES[family](rng, scene) for family in families)
    return [question for question in asked if question is not None]


def mentions(scene: Scene, text: str) -> Iterator[tuple[int, tuple[SceneObject, ...]]]:
    """Yield the words of a question that name objects: index of their last character, and all objects that they fit."""
    for match in _MENTION.finditer(text):
        color, shape = match.groups()
        if color or shape:
            yield match.end() - 1, scene.matching(color, shape)


def answer_object(scene: Scene, question: Question) -> SceneObject | None:
    """Return the one object whose color or shape is the answer, if there is one."""
    if question.family not in ("attribute", "nearest"):
        return None
    ((_, objects),) = mentions(scene, question.text)
    if question.family == "attribute":
        return objects[0]
    return min((item for item in scene.objects if item is not objects[0]), key=objects[0].distance)
