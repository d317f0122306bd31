"""Shapes-captions: captioned scenes, generated from a seed and written in Karpathy's format.

Every image has five captions, and every caption three hard negatives: the same sentence with one word changed, false of
the image (`hard_negatives`, our field in its entry). In val and test a caption is true of no other image.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.files import absolute
from das_gym.shapes.caption_language import ObjectName, RelationFact, SceneCaption, sample_false, sample_scene_caption
from das_gym.shapes.scenes import Scene, render, sample_scene
from das_gym.shapes.writing import NewImages, bundled_root, check_counts, jpeg, new_data_set

VERSION = 1
"""Names the folder in the cache. Raise it with every change of images or captions, so that no stale folder is read."""

SCENES = {"train": 3000, "val": 300, "test": 300}
"""Scenes of the bundled data set."""

CAPTIONS = 5
HARD_NEGATIVES = 3
MIN_SCENES = 4
MIN_OBJECTS = 3
"""Two objects leave too little to say."""

FILE = "dataset_shapes.json"

_TRIES = 40
"""Captions drawn for a scene before it is given up."""


class _Index:
    """The scenes and captions of a split, by the names of two objects that they have."""

    def __init__(self) -> None:
        self._scenes: dict[frozenset[ObjectName], list[Scene]] = defaultdict(list)
        self._captions: dict[frozenset[ObjectName], list[SceneCaption]] = defaultdict(list)

    def has_scene_for(self, caption: SceneCaption) -> bool:
        """Return whether a caption is true, or nearly so, of a scene in the index."""
        return any(caption.may_be_true(scene) for scene in self._scenes[_names(caption)])

    def has_caption_for(self, scene: Scene) -> bool:
        """Return whether a caption in the index is true, or nearly so, of a scene."""
        return any(caption.may_be_true(scene) for names in _pairs_of_names(scene) for caption in self._captions[names])

    def add(self, scene: Scene, captions: list[SceneCaption]) -> None:
        """Add a scene and its captions."""
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
    rng: np.random.Generator, count: int, unique: bool, images: NewImages
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
        if captions is not None and images.add(content := jpeg(render(scene))):
            if index:
                index.add(scene, captions)
            drawn += 1
            yield scene, content, captions


def _draw_captions(rng: np.random.Generator, scene: Scene, index: _Index | None) -> list[SceneCaption] | None:
    """Draw different captions of a scene, true of no scene in the index; None where too few are found."""
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
            "hard_negatives": [str(false) for false in sample_false(rng, caption, scene, HARD_NEGATIVES)],
        }
        for number, caption in enumerate(captions)
    ]
    sentids = [sentence["sentid"] for sentence in sentences]
    return {"sentids": sentids, "imgid": imgid, "sentences": sentences, "split": split, "filename": f"{imgid:06d}.jpg"}


def write_shapes_captions(folder: str | Path, seed: int = 0, scenes: Mapping[str, int] = SCENES) -> Path:
    """Write Shapes-captions in Karpathy's format: a JSON file, and a folder `images` of JPEG images.

    No image occurs twice, and the same arguments write the same data. `folder` is new or empty. `train`, `val` and `test`
    have at least 4 images each, so that there are 15 captions of other images.
    """
    folder = absolute(folder)
    check_counts(0, seed=seed)
    check_counts(MIN_SCENES, **{split: scenes.get(split, 0) for split in SCENES})
    entries: list[dict[str, Any]] = []
    images = NewImages()
    with new_data_set(folder, "Shapes-captions", sum(scenes.values())) as (partial, bar):
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


def shapes_captions_root(cache: str | Path | None = None) -> Path:
    """Return the bundled Shapes-captions, a `data_root`, which is written on first use (some seconds, about 15 MB)."""
    return bundled_root(f"shapes-captions-{VERSION}", write_shapes_captions, "Shapes-captions", cache)
