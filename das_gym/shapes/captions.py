"""Shapes-captions: captioned scenes, generated from a seed and written in Karpathy's format.

Every image has five captions, and every caption three hard negatives: the same sentence with one word changed, false of the
image (`hard_negatives`, our field in its entry). In val and test a caption is true of no other image.

A caption joins two facts, a relation of two objects and something about the rest of the scene, in the words of
`das_gym.shapes.vqa`. `may_be_true` tests it on any scene: what is false is clearly false.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.files import absolute_path
from das_gym.shapes.scenes import (
    COLORS,
    SHAPES,
    Scene,
    SceneObject,
    SeenImages,
    check_counts,
    encode_jpeg,
    pick,
    plural,
    render,
    sample_scene,
    writing_data_set,
)
from das_gym.shapes.vqa import OPPOSITES, RELATION_MARGIN, RELATIONS

MAX_COUNTED = 5

SCENES = {"train": 3000, "val": 300, "test": 300}

CAPTIONS = 5
HARD_NEGATIVES = 3
MIN_SCENES = 4
MIN_OBJECTS = 3
"""Two objects leave too little to say."""

FILE = "dataset_shapes.json"

_TRIES = 40


@dataclass(frozen=True)
class ObjectName:
    """A colour and a shape."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.color} {self.shape}"

    def changed(self) -> Iterator[ObjectName]:
        """Yield the names with another colour, or with another shape."""
        yield from (replace(self, color=color) for color in COLORS if color != self.color)
        yield from (replace(self, shape=shape) for shape in SHAPES if shape != self.shape)


@dataclass(frozen=True)
class RelationFact:
    """`a red circle left of a blue star`."""

    subject: ObjectName
    relation: str
    other: ObjectName

    def __str__(self) -> str:
        return f"{self.subject} {self.relation} {self.other}"

    def may_be_true(self, scene: Scene) -> bool:
        """Return True if the relation holds in the scene, or fails by less than `RELATION_MARGIN` pixels."""
        by = RELATIONS[self.relation]
        subjects = scene.matching(self.subject.color, self.subject.shape)
        others = scene.matching(self.other.color, self.other.shape)
        return any(by(a, b) > -RELATION_MARGIN for a in subjects for b in others if a is not b)

    def changed(self) -> Iterator[RelationFact]:
        """Yield the facts with one word changed."""
        yield replace(self, relation=OPPOSITES[self.relation])
        yield from (replace(self, subject=name) for name in self.subject.changed() if name != self.other)
        yield from (replace(self, other=name) for name in self.other.changed() if name != self.subject)


@dataclass(frozen=True)
class ExistenceFact:
    """`a green cross`."""

    name: ObjectName

    def __str__(self) -> str:
        return str(self.name)

    def may_be_true(self, scene: Scene) -> bool:
        """Return True if the fact holds in the scene."""
        return bool(scene.matching(self.name.color, self.name.shape))

    def changed(self) -> Iterator[ExistenceFact]:
        """Yield the facts with one word changed."""
        yield from (ExistenceFact(name) for name in self.name.changed())


@dataclass(frozen=True)
class CountFact:
    """`2 crosses` or `3 red objects`: exactly n of them."""

    number: int
    color: str | None = None
    shape: str | None = None

    def __str__(self) -> str:
        noun = f"{self.color} objects" if self.shape is None else plural(self.shape)
        return f"{self.number} {noun}"

    def may_be_true(self, scene: Scene) -> bool:
        """Return True if the fact holds in the scene."""
        return len(scene.matching(self.color, self.shape)) == self.number

    def changed(self) -> Iterator[CountFact]:
        """Yield the facts with one word changed."""
        yield from (replace(self, number=n) for n in range(2, MAX_COUNTED + 1) if n != self.number)
        if self.color is not None:
            yield from (replace(self, color=color) for color in COLORS if color != self.color)
        else:
            yield from (replace(self, shape=shape) for shape in SHAPES if shape != self.shape)


@dataclass(frozen=True)
class SceneCaption:
    """Facts that are all true of the scene from which they were drawn."""

    facts: tuple[RelationFact | ExistenceFact | CountFact, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.facts)) + "."

    def may_be_true(self, scene: Scene) -> bool:
        """Return True if every fact may be true of the scene."""
        return all(fact.may_be_true(scene) for fact in self.facts)

    def changed(self, scene: Scene) -> list[SceneCaption]:
        """Return every caption that differs by one word and is clearly false of the scene, fact by fact."""
        captions = []
        for position, fact in enumerate(self.facts):
            for new in fact.changed():
                captions.append(SceneCaption((*self.facts[:position], new, *self.facts[position + 1 :])))
        return [caption for caption in captions if not caption.may_be_true(scene)]


def _name(item: SceneObject) -> ObjectName:
    return ObjectName(item.color, item.shape)


def _related(rng: np.random.Generator, scene: Scene) -> RelationFact | None:
    options = [
        RelationFact(_name(a), relation, _name(b))
        for a in scene.objects
        for b in scene.objects
        for relation, by in RELATIONS.items()
        if a.name != b.name and by(a, b) >= RELATION_MARGIN
    ]
    return pick(rng, options) if options else None


def _rest(rng: np.random.Generator, scene: Scene, related: RelationFact) -> ExistenceFact | CountFact | None:
    counted = [CountFact(n, color=c) for c in COLORS if (n := len(scene.matching(color=c))) >= 2]
    counted += [CountFact(n, shape=s) for s in SHAPES if (n := len(scene.matching(shape=s))) >= 2]
    there = [ExistenceFact(name) for item in scene.objects if (name := _name(item)) not in (related.subject, related.other)]
    kinds: list[Sequence[ExistenceFact | CountFact]] = [kind for kind in (counted, there) if kind]
    return pick(rng, pick(rng, kinds)) if kinds else None


def sample_scene_caption(rng: np.random.Generator, scene: Scene) -> SceneCaption | None:
    """Draw a caption that is true of the scene; None where there is none."""
    related = _related(rng, scene)
    rest = related and _rest(rng, scene, related)
    return SceneCaption((related, rest)) if related and rest else None


def sample_false_captions(rng: np.random.Generator, caption: SceneCaption, scene: Scene, count: int) -> list[SceneCaption]:
    """Draw captions with one word changed, clearly false of the scene: first the opposite relation where that is false."""
    options = caption.changed(scene)
    relations = {fact.relation for fact in caption.facts if isinstance(fact, RelationFact)}
    # The opposite relation has the same words of colour and shape: only the positions tell it apart.
    opposite = [o for o in options if any(isinstance(f, RelationFact) and f.relation not in relations for f in o.facts)]
    others = [option for option in options if option not in opposite]
    drawn = rng.choice(len(others), count - len(opposite), replace=False)
    return opposite + [others[int(i)] for i in drawn]


class _Index:
    def __init__(self) -> None:
        self._scenes: dict[frozenset[ObjectName], list[Scene]] = defaultdict(list)
        self._captions: dict[frozenset[ObjectName], list[SceneCaption]] = defaultdict(list)

    def has_scene_for(self, caption: SceneCaption) -> bool:
        """Return True if a caption may be true of a scene in the index."""
        return any(caption.may_be_true(scene) for scene in self._scenes[_names(caption)])

    def has_caption_for(self, scene: Scene) -> bool:
        """Return True if a caption in the index may be true of a scene."""
        return any(caption.may_be_true(scene) for names in _pairs_of_names(scene) for caption in self._captions[names])

    def add(self, scene: Scene, captions: list[SceneCaption]) -> None:
        for names in _pairs_of_names(scene):
            self._scenes[names].append(scene)
        for caption in captions:
            self._captions[_names(caption)].append(caption)


def _names(caption: SceneCaption) -> frozenset[ObjectName]:
    return frozenset(name for fact in caption.facts if isinstance(fact, RelationFact) for name in (fact.subject, fact.other))


def _pairs_of_names(scene: Scene) -> set[frozenset[ObjectName]]:
    names = {ObjectName(item.color, item.shape) for item in scene.objects}
    return {frozenset(two) for two in combinations(names, 2)}


def draw_split(
    rng: np.random.Generator, count: int, unique: bool, images: SeenImages
) -> Iterator[tuple[Scene, bytes, list[SceneCaption]]]:
    """Yield scenes with new images, their JPEG files and captions; with `unique` a caption is true of one scene only."""
    # Training scenes may share captions, as those of real images do; in val and test each has to find its image.
    index = _Index() if unique else None
    drawn = 0
    while drawn < count:
        scene = sample_scene(rng)
        # A new scene must not make an earlier caption ambiguous either.
        if len(scene.objects) < MIN_OBJECTS or (index and index.has_caption_for(scene)):
            continue
        captions = _draw_captions(rng, scene, index)
        if captions is not None and images.add(content := encode_jpeg(render(scene))):
            if index:
                index.add(scene, captions)
            drawn += 1
            yield scene, content, captions


def _draw_captions(rng: np.random.Generator, scene: Scene, index: _Index | None) -> list[SceneCaption] | None:
    found: dict[str, SceneCaption] = {}
    for _ in range(_TRIES):
        caption = sample_scene_caption(rng, scene)
        if caption is not None and not (index and index.has_scene_for(caption)):
            found.setdefault(str(caption), caption)
            if len(found) == CAPTIONS:
                return list(found.values())
    return None


def _entry(rng: np.random.Generator, imgid: int, split: str, scene: Scene, captions: list[SceneCaption]) -> dict[str, Any]:
    sentences = [
        {
            "tokens": str(caption).rstrip(".").replace(",", "").split(),
            "raw": str(caption),
            "imgid": imgid,
            "sentid": imgid * CAPTIONS + number,
            "hard_negatives": [str(false) for false in sample_false_captions(rng, caption, scene, HARD_NEGATIVES)],
        }
        for number, caption in enumerate(captions)
    ]
    sentids = [sentence["sentid"] for sentence in sentences]
    return {"sentids": sentids, "imgid": imgid, "sentences": sentences, "split": split, "filename": f"{imgid:06d}.jpg"}


def write_shapes_captions(folder: str | Path, seed: int = 0, scenes: Mapping[str, int] = SCENES) -> Path:
    """Write Shapes-captions in Karpathy's format: a JSON file, and a folder `images` of JPEG images.

    The same arguments write the same data into `folder`, which is new or empty. No image occurs twice, and each part has at
    least 4, so that there are 15 captions of other images.
    """
    folder = absolute_path(folder)
    check_counts(0, seed=seed)
    check_counts(MIN_SCENES, **{split: scenes.get(split, 0) for split in SCENES})
    entries: list[dict[str, Any]] = []
    images = SeenImages()
    with writing_data_set(folder, "Shapes-captions", sum(scenes.values())) as (partial, bar):
        (partial / "images").mkdir()
        for rng, split in zip(np.random.default_rng(seed).spawn(len(SCENES)), SCENES, strict=True):
            for scene, content, captions in draw_split(rng, scenes[split], split != "train", images):
                entry = _entry(rng, len(entries), split, scene, captions)
                (partial / "images" / entry["filename"]).write_bytes(content)
                entries.append(entry)
                bar.update()
        whole = json.dumps({"images": entries, "dataset": "shapes"}, separators=(",", ":"))
        (partial / FILE).write_text(whole, encoding="utf-8")
    return folder
