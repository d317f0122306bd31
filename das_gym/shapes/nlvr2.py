"""Shapes-NLVR2: statements about pairs of scenes, generated from a seed and written in NLVR2's format.

Every statement is an equation between the left and the right scene: each side comes in two kinds, and the statement is true
of the pairs (0, 0) and (1, 1) and false of (0, 1) and (1, 0). So the statement with one scene, or alone, carries no
information. The words are those of `das_gym.shapes.vqa`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from das_gym.files import absolute_path
from das_gym.shapes.scenes import (
    COLORS,
    MAX_OBJECTS,
    MIN_OBJECTS,
    SHAPES,
    Scene,
    SceneObject,
    check_counts,
    pick,
    plural,
    render,
    sample_background,
    sample_object,
    writing_data_set,
)
from das_gym.shapes.vqa import OPPOSITES, RELATION_MARGIN, RELATIONS

Name = tuple[str | None, str | None]
"""Colour and shape of an object; None = any."""

MAX_COUNTED = 3

LARGEST_TOTAL = 5
"""Largest number in a statement, as in the captions of pre-training."""

_TRIES = 60

KINDS = ((0, 0), (1, 1), (0, 1), (1, 0))
"""Kinds of the left and the right scene in the pairs of a set, in some order."""

DIRECTORIES = 9
DIRECTORY_SETS = 125
TEST_SETS = 190
"""Directories of train, and sets of statements in each of them and in test1. A set has eight statements."""


@dataclass(frozen=True)
class Kind:
    """A condition on a scene, and the objects that it needs."""

    objects: tuple[Name, ...]
    holds: Callable[[Scene], bool]


@dataclass(frozen=True)
class Statement:
    """A sentence about two scenes, each of one of two kinds; it is true where both kinds have the same index."""

    text: str
    family: str
    left: tuple[Kind, Kind]
    right: tuple[Kind, Kind]


def _one_of_two(text: str, family: str, present: Kind, absent: Kind) -> Statement:
    return Statement(text, family, (present, absent), (absent, present))


def _draw_existence(rng: np.random.Generator) -> Statement:
    color = pick(rng, list(COLORS))
    shape = pick(rng, SHAPES)
    present = Kind(((color, shape),), lambda scene: len(scene.matching(color, shape)) == 1)
    absent = Kind((), lambda scene: not scene.matching(color, shape))
    return _one_of_two(f"there is 1 {color} {shape}.", "existence", present, absent)


def _draw_attribute(rng: np.random.Generator) -> Statement:
    color = pick(rng, list(COLORS))
    shape = pick(rng, SHAPES)
    known: Name
    if rng.random() < 0.5:
        text = f"1 {shape} is {color}."
        known = (None, shape)
    else:
        text = f"1 {color} object is a {shape}."
        known = (color, None)

    def kind(wanted: bool) -> Kind:
        def holds(scene: Scene) -> bool:
            found = scene.matching(*known)
            return len(found) == 1 and (found[0].color == color and found[0].shape == shape) is wanted

        return Kind(((color, shape) if wanted else known,), holds)

    return _one_of_two(text, "attribute", kind(True), kind(False))


def _draw_count(rng: np.random.Generator) -> Statement:
    total = int(rng.integers(2, LARGEST_TOTAL + 1))
    lefts = [n for n in range(MAX_COUNTED + 1) if 0 <= total - n <= MAX_COUNTED]
    first, second = rng.choice(lefts, 2, replace=False).tolist()
    if rng.random() < 0.5:
        known: Name = (pick(rng, list(COLORS)), None)
        noun = f"{known[0]} objects"
    else:
        shape = pick(rng, SHAPES)
        known = (None, shape)
        noun = plural(shape)

    def kind(number: int) -> Kind:
        return Kind((known,) * number, lambda scene: len(scene.matching(*known)) == number)

    left = (kind(first), kind(second))
    right = (kind(total - first), kind(total - second))
    return Statement(f"there are {total} {noun}.", "count", left, right)


def _draw_relation(rng: np.random.Generator) -> Statement:
    names = [(color, shape) for color in COLORS for shape in SHAPES]
    a, b = rng.choice(len(names), 2, replace=False).tolist()
    word = pick(rng, list(OPPOSITES))

    def kind(wanted: bool) -> Kind:
        def holds(scene: Scene) -> bool:
            first = scene.matching(*names[a])
            second = scene.matching(*names[b])
            by = RELATIONS[word if wanted else OPPOSITES[word]]
            return len(first) == len(second) == 1 and by(first[0], second[0]) >= RELATION_MARGIN

        return Kind((names[a], names[b]), holds)

    text = f"1 {' '.join(names[a])} is {word} a {' '.join(names[b])}."
    return _one_of_two(text, "relation", kind(True), kind(False))


def _draw_same(rng: np.random.Generator) -> Statement:
    if rng.random() < 0.5:
        shape = pick(rng, SHAPES)
        text = f"the left {shape} is the color of the right {shape}."
        values: list[Name] = [(color, shape) for color in rng.permutation(list(COLORS))[:2].tolist()]
        known: Name = (None, shape)
    else:
        color = pick(rng, list(COLORS))
        text = f"the left {color} object is the shape of the right {color} object."
        values = [(color, shape) for shape in rng.permutation(SHAPES)[:2].tolist()]
        known = (color, None)

    def kind(name: Name) -> Kind:
        return Kind((name,), lambda scene: len(scene.matching(*known)) == len(scene.matching(*name)) == 1)

    kinds = kind(values[0]), kind(values[1])
    return Statement(text, "same", kinds, kinds)


STATEMENT_FAMILIES: dict[str, Callable[[np.random.Generator], Statement]] = {
    "existence": _draw_existence,
    "attribute": _draw_attribute,
    "count": _draw_count,
    "relation": _draw_relation,
    "same": _draw_same,
}


@dataclass(frozen=True)
class ScenePair:
    """A left and a right scene, and whether each statement of the set is true of them."""

    left: Scene
    right: Scene
    truths: tuple[bool, ...]


@dataclass(frozen=True)
class StatementSet:
    """Statements about the same four pairs of scenes; each is true of two of them."""

    statements: tuple[Statement, ...]
    pairs: tuple[ScenePair, ...]


def sample_set(rng: np.random.Generator, families: Sequence[str]) -> StatementSet:
    """Draw a set with a statement of each of the families, until there are scenes for all of them together."""
    while True:
        statements = tuple(STATEMENT_FAMILIES[family](rng) for family in families)
        pairs = _sample_pairs(rng, statements)
        if pairs is not None:
            return StatementSet(statements, pairs)


def _sample_pairs(rng: np.random.Generator, statements: Sequence[Statement]) -> tuple[ScenePair, ...] | None:
    # Independent orders: the truth of one statement tells nothing of the other.
    orders = [rng.permutation(len(KINDS)).tolist() for _ in statements]
    pairs = []
    for place in range(len(KINDS)):
        kinds = [KINDS[order[place]] for order in orders]
        left = _sample_scene(rng, [s.left[k] for s, (k, _) in zip(statements, kinds, strict=True)])
        right = _sample_scene(rng, [s.right[k] for s, (_, k) in zip(statements, kinds, strict=True)])
        if left is None or right is None:
            return None
        pairs.append(ScenePair(left, right, tuple(a == b for a, b in kinds)))
    return tuple(pairs)


def _sample_scene(rng: np.random.Generator, kinds: Sequence[Kind]) -> Scene | None:
    needed: list[Name] = [name for kind in kinds for name in kind.objects]
    if len(needed) > MAX_OBJECTS:
        return None
    count = int(rng.integers(max(MIN_OBJECTS, len(needed)), MAX_OBJECTS + 1))
    for _ in range(_TRIES):
        objects: list[SceneObject] = []
        for color, shape in [*needed, *[(None, None)] * (count - len(needed))]:
            objects.append(sample_object(rng, objects, color, shape))
        scene = Scene(tuple(objects), sample_background(rng))
        if all(kind.holds(scene) for kind in kinds):
            return scene
    return None


def write_shapes_nlvr2(
    folder: str | Path,
    seed: int = 0,
    directories: int = DIRECTORIES,
    directory_sets: int = DIRECTORY_SETS,
    test_sets: int = TEST_SETS,
) -> Path:
    """Write Shapes-NLVR2 in NLVR2's format: `train.json`, `test1.json` and a folder `images` of PNG files.

    The same arguments write the same data into `folder`, which is new or empty. A set is four pairs of images and two
    sentences. The reader takes one or more of the directories of train, at least two, as the reward split.
    """
    folder = absolute_path(folder)
    train_sets = directories * directory_sets
    check_counts(0, seed=seed)
    check_counts(1, directory_sets=directory_sets, test_sets=test_sets)
    check_counts(2, directories=directories)
    train_rng, test_rng = np.random.default_rng(seed).spawn(2)
    with writing_data_set(folder, "Shapes-NLVR2", train_sets + test_sets, "set") as (partial, bar):
        _write_split(partial, "train", [str(n // directory_sets) for n in range(train_sets)], train_rng, bar)
        _write_split(partial, "test1", [""] * test_sets, test_rng, bar)
    return folder


def _write_split(folder: Path, split: str, directories: list[str], rng: np.random.Generator, bar: tqdm) -> None:
    """Write a set of images and statements for each entry of `directories`; `` is the folder of the split itself."""
    # Every pair of families in turn, so that all are equally frequent.
    families = list(combinations_with_replacement(STATEMENT_FAMILIES, 2))
    lines: list[str] = []
    for number, directory in enumerate(directories):
        drawn = sample_set(rng, families[number % len(families)])
        images = folder / "images" / split / directory
        images.mkdir(parents=True, exist_ok=True)
        for pair_number, pair in enumerate(drawn.pairs):
            for side, scene in enumerate((pair.left, pair.right)):
                render(scene).save(images / f"{split}-{number}-{pair_number}-img{side}.png")
        lines += map(json.dumps, _entries(f"{split}-{number}", directory, drawn))
        bar.update()
    (folder / f"{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _entries(name: str, directory: str, drawn: StatementSet) -> Iterator[dict[str, Any]]:
    for number, pair in enumerate(drawn.pairs):
        for which, (statement, truth) in enumerate(zip(drawn.statements, pair.truths, strict=True)):
            entry = {"sentence": statement.text, "label": str(truth), "identifier": f"{name}-{number}-{which}"}
            yield {**entry, **({"directory": directory} if directory else {}), "family": statement.family}
