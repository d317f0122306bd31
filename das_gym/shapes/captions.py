"""Shapes-captions: captioned scenes, generated from a seed and written in Karpathy's format.

Every image has five captions, and every caption three hard negatives: the same sentence with one word changed, false of
the image (`hard_negatives`, a key of ours in its entry). In val and test a caption is true of its own image alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.files import whole_folder
from das_gym.progress import progress
from das_gym.shapes.caption_language import Name, Related, SceneCaption, sample_false, sample_scene_caption
from das_gym.shapes.scenes import Scene, render, sample_scene
from das_gym.shapes.writing import NewPictures, bundled_root, check_scenes, jpeg, new_folder

VERSION = 1
"""Names the folder in the cache. Raise it with every change to what is drawn or said, so that no stale folder is read."""

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


Drawn = tuple[Scene, bytes, list[SceneCaption]]
"""A scene, its JPEG file and its captions."""


def _names(caption: SceneCaption) -> frozenset[Name]:
    """The two objects that its relation is between."""
    return frozenset(name for fact in caption.facts if isinstance(fact, Related) for name in (fact.subject, fact.other))


class _Shelf:
    """The scenes and captions of a split, found by two objects that they have."""

    def __init__(self) -> None:
        self._scenes: dict[frozenset[Name], list[Scene]] = defaultdict(list)
        self._captions: dict[frozenset[Name], list[SceneCaption]] = defaultdict(list)

    def fits_scene(self, caption: SceneCaption) -> bool:
        """Whether it is true, or nearly so, of a scene on the shelf."""
        return any(caption.maybe(scene) for scene in self._scenes[_names(caption)])

    def fits_caption(self, scene: Scene) -> bool:
        """Whether a caption on the shelf is true, or nearly so, of it."""
        return any(caption.maybe(scene) for names in _shown(scene) for caption in self._captions[names])

    def put(self, scene: Scene, captions: list[SceneCaption]) -> None:
        """Add a scene and its captions."""
        for names in _shown(scene):
            self._scenes[names].append(scene)
        for caption in captions:
            self._captions[_names(caption)].append(caption)


def _shown(scene: Scene) -> set[frozenset[Name]]:
    """Every two objects of different names."""
    names = {Name(item.color, item.shape) for item in scene.objects}
    return {frozenset(two) for two in combinations(names, 2)}


def _captions(rng: np.random.Generator, scene: Scene, shelf: _Shelf | None) -> list[SceneCaption] | None:
    """Different captions of a scene, true of no scene on the shelf; None where too few are found."""
    found: dict[str, SceneCaption] = {}
    for _ in range(_TRIES):
        caption = sample_scene_caption(rng, scene)
        if caption is not None and not (shelf and shelf.fits_scene(caption)):
            found.setdefault(str(caption), caption)
            if len(found) == CAPTIONS:
                return list(found.values())
    return None


def _draw_split(rng: np.random.Generator, count: int, alone: bool, pictures: NewPictures) -> Iterator[Drawn]:
    """Captioned scenes, none of whose pictures occurred before; with `alone` a caption is true of one of them only."""
    shelf = _Shelf() if alone else None
    drawn = 0
    while drawn < count:
        scene = sample_scene(rng)
        if len(scene.objects) < MIN_OBJECTS or (shelf and shelf.fits_caption(scene)):
            continue
        captions = _captions(rng, scene, shelf)
        if captions is not None and pictures.add(content := jpeg(render(scene))):
            if shelf:
                shelf.put(scene, captions)
            drawn += 1
            yield scene, content, captions


def _entry(rng: np.random.Generator, imgid: int, split: str, scene: Scene, captions: list[SceneCaption]) -> dict[str, Any]:
    """Karpathy's entry of an image."""
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
    """Write Shapes-captions as Karpathy has it: a JSON file, and a folder `images` of JPEG images.

    No picture occurs twice. The same arguments write the same data. The folder appears whole or not at all.

    Args:
        folder: Where to write; a new or an empty folder.
        seed: Seed of everything that is drawn, 0 or more.
        scenes: Images of `train`, `val` and `test`: at least 4 each, so that there are 15 captions of other images.

    Returns:
        The folder, absolute.

    Raises:
        FileExistsError: The folder holds something.
        ValueError: A number is out of its range.
    """
    folder = new_folder(folder)
    check_scenes(seed, scenes, SCENES, MIN_SCENES)
    entries: list[dict[str, Any]] = []
    pictures = NewPictures()
    with whole_folder(folder) as partial, progress(sum(scenes.values()), "drawing Shapes-captions", unit="scene") as bar:
        (partial / "images").mkdir()
        for rng, split in zip(np.random.default_rng(seed).spawn(len(SCENES)), SCENES, strict=True):
            for scene, content, captions in _draw_split(rng, scenes[split], split != "train", pictures):
                entry = _entry(rng, len(entries), split, scene, captions)
                (partial / "images" / entry["filename"]).write_bytes(content)
                entries.append(entry)
                bar.update()
        whole = json.dumps({"images": entries, "dataset": "shapes"}, separators=(",", ":"))
        (partial / FILE).write_text(whole, encoding="utf-8")
    return folder


def shapes_captions_root(cache: str | Path | None = None) -> Path:
    """The bundled Shapes-captions, a `data_root`, written on first use (some seconds, about 15 MB); see `bundled_root`."""
    return bundled_root(f"shapes-captions-{VERSION}", write_shapes_captions, "Shapes-captions", cache)
