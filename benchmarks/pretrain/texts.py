"""What pre-training learns from: captions and questions about scenes, and the objects in the patches of their images."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from das_gym.shapes.scenes import COLORS, IMAGE_SIZE, SHAPES, Scene, SceneObject, paint, pick
from das_gym.shapes.vqa import (
    OPPOSITES,
    QUESTION_FAMILIES,
    Question,
    absent_name,
    attribute_target,
    draw_counted_group,
    nearest_pair,
    related_pair,
)

PATCH_SIZE = 16
"""Side in pixels of a patch of METER and ViLT, and of what an image token of a decoder shows."""

MIN_SHARE = 0.15
"""Least share of a patch that an object covers to own it."""


INSTRUCTION = "\nAnswer the question using a single word or phrase."
"""Follows every question."""

DESCRIPTION = "describe the picture from left to right."

AGAIN = ("count", "relation", "nearest", "nearest")
MORE = 3
"""Number of further questions drawn from these families, which are the hardest to learn."""

_MENTION = re.compile(rf"\b(?:({'|'.join(COLORS)}) )?(?:({'|'.join(SHAPES)})(?:es|s)?|objects?)\b")


@dataclass(frozen=True)
class Caption:
    """A sentence that is true of a scene, a false variant, and the objects that it mentions.

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


def _index(scene: Scene, *items: SceneObject) -> tuple[int, ...]:
    return tuple(i for i, o in enumerate(scene.objects) if any(o is item for item in items))


def _draw_attribute(rng: np.random.Generator, scene: Scene) -> Caption | None:
    target = attribute_target(rng, scene)
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


def _draw_existence(rng: np.random.Generator, scene: Scene) -> Caption:
    item = pick(rng, scene.objects)
    others = scene.matching(item.color, item.shape)
    return Caption(f"there is a {item.name}.", f"there is a {absent_name(rng, scene)}.", _index(scene, *others))


def _draw_count(rng: np.random.Generator, scene: Scene) -> Caption:
    noun, number, found = draw_counted_group(rng, scene, lowest=0)
    wrong = pick(rng, [n for n in range(max(0, number - 1), number + 3) if n != number])
    return Caption(f"there are {number} {noun}.", f"there are {wrong} {noun}.", _index(scene, *found))


def _draw_relation(rng: np.random.Generator, scene: Scene) -> Caption | None:
    pair = related_pair(rng, scene)
    if pair is None:
        return None
    a, relation, b = pair
    true, false = (f"the {a.name} is {word} the {b.name}." for word in (relation, OPPOSITES[relation]))
    return Caption(true, false, _index(scene, a), _index(scene, b))


def _draw_nearest(rng: np.random.Generator, scene: Scene) -> Caption | None:
    pair = nearest_pair(rng, scene)
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
    "attribute": _draw_attribute,
    "existence": _draw_existence,
    "count": _draw_count,
    "relation": _draw_relation,
    "nearest": _draw_nearest,
}
"""Each draws a sentence of its family, or returns None where the scene has none."""


def pixel_owners(scene: Scene) -> np.ndarray:
    """Return the object in each pixel, (96, 96) int64: an index into `scene.objects`, or -1 for background."""
    ids = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 0)
    draw = ImageDraw.Draw(ids)
    for index, item in enumerate(scene.objects):
        paint(draw, item, index + 1)
    return np.asarray(ids, dtype=np.int64) - 1


def patch_owners(scene: Scene) -> np.ndarray:
    """Return the object in each patch, (n_patches,) int64 in raster order: an index into `scene.objects`, or -1."""
    side = IMAGE_SIZE // PATCH_SIZE
    cells = pixel_owners(scene).reshape(side, PATCH_SIZE, side, PATCH_SIZE)
    numbers = np.arange(len(scene.objects)).reshape(-1, 1, 1, 1, 1)
    share = (cells[None] == numbers).mean(axis=(2, 4)).reshape(len(scene.objects), -1)
    return np.where(share.max(axis=0) >= MIN_SHARE, share.argmax(axis=0), -1)


def questions(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """Draw a question of each family that the scene offers, and more of the hard ones."""
    families = [*QUESTION_FAMILIES, *(AGAIN[i] for i in rng.integers(len(AGAIN), size=MORE))]
    asked = (QUESTION_FAMILIES[family](rng, scene) for family in families)
    return [question for question in asked if question is not None]


def describe(scene: Scene) -> Question:
    """Ask for every object by name, from left to right."""
    names = [item.name for item in sorted(scene.objects, key=lambda item: item.x)]
    return Question(DESCRIPTION, ", ".join(names), "description", "other")


def mentions(scene: Scene, text: str) -> Iterator[tuple[int, tuple[SceneObject, ...]]]:
    """Yield the words of a question that name objects: index of their last character, and all objects that they fit."""
    for match in _MENTION.finditer(text):
        color, shape = match.groups()
        if color or shape:
            yield match.end() - 1, scene.matching(color, shape)


def target(scene: Scene, question: Question) -> SceneObject | None:
    """Return the one object whose colour or shape is the answer, if there is one."""
    if question.family not in ("attribute", "nearest"):
        return None
    ((_, objects),) = mentions(scene, question.text)
    if question.family == "attribute":
        return objects[0]
    return min((item for item in scene.objects if item is not objects[0]), key=objects[0].distance)
