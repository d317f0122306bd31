"""Shapes-SNLI-VE: what scenes entail, contradict and leave open, generated from a seed and written in SNLI-VE's format.

Half of the pictures have a curtain, behind which anything of any size may be. So whether something that is not to be seen
is there is left open where there is a curtain, and denied where there is none; what is to be seen is entailed either way. A
number is exact: with a curtain it is contradicted by more objects than it says, and never entailed. Sentences are single
facts of `caption_language`, half of them with a word changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageDraw

from das_gym.files import whole_folder
from das_gym.progress import progress
from das_gym.shapes.caption_language import Counted, SceneCaption, sample_scene_caption
from das_gym.shapes.scenes import IMAGE_SIZE, MAX_RADIUS, Scene, pick, render, sample_scene
from das_gym.shapes.writing import NewPictures, bundled_root, check_scenes, jpeg, new_folder

VERSION = 1
"""Names the folder in the cache. Raise it with every change to what is drawn or said, so that no stale folder is read."""

SCENES = {"train": 2000, "dev": 300, "test": 300}
"""Scenes of the bundled data set."""

HYPOTHESES = 4
"""Sentences about a scene."""

CURTAIN_WIDTH = 28
CURTAIN_COLOR = (120, 120, 120)


def label_of(said: SceneCaption, is_true: bool, scene: Scene, curtain: bool) -> str:
    """What a picture says of a single fact.

    Args:
        said: The fact.
        is_true: Whether it is true of the objects that are to be seen, clearly so or clearly not.
        scene: Those objects.
        curtain: Whether there may be others.
    """
    fact = said.facts[0]
    if curtain and isinstance(fact, Counted):
        return "contradiction" if len(scene.matching(fact.color, fact.shape)) > fact.number else "neutral"
    if is_true:
        return "entailment"
    return "neutral" if curtain else "contradiction"


def _say(rng: np.random.Generator, scene: Scene, curtain: bool) -> tuple[str, str]:
    """A hypothesis and its label."""
    while (caption := sample_scene_caption(rng, scene)) is None:
        pass
    said, is_true = SceneCaption((pick(rng, caption.facts),)), bool(rng.random() < 0.5)
    said = said if is_true else pick(rng, said.changed(scene))
    return str(said), label_of(said, is_true, scene, curtain)


def _draw(rng: np.random.Generator) -> tuple[Scene, bool, bytes]:
    """A scene about which enough can be said, whether it has a curtain, which covers no object of it, and its JPEG file."""
    left = pick(rng, (0, IMAGE_SIZE - CURTAIN_WIDTH))
    curtain = bool(rng.random() < 0.5)
    nearest, furthest = left - MAX_RADIUS, left + CURTAIN_WIDTH + MAX_RADIUS
    while True:
        scene = sample_scene(rng)
        covered = curtain and any(nearest < item.x < furthest for item in scene.objects)
        if not covered and sample_scene_caption(rng, scene) is not None:
            break
    picture = render(scene)
    if curtain:
        ImageDraw.Draw(picture).rectangle((left, 0, left + CURTAIN_WIDTH - 1, IMAGE_SIZE), fill=CURTAIN_COLOR)
    return scene, curtain, jpeg(picture)


def _entries(rng: np.random.Generator, name: str, scene: Scene, curtain: bool) -> Iterator[dict[str, Any]]:
    """SNLI-VE's entries of a picture: each hypothesis once."""
    labels: dict[str, str] = {}
    while len(labels) < HYPOTHESES:
        labels.setdefault(*_say(rng, scene, curtain))
    premise = str(sample_scene_caption(rng, scene) or "")
    for number, (hypothesis, label) in enumerate(labels.items()):
        place = {"captionID": f"{name}.jpg#0", "pairID": f"{name}.jpg#0r{number}", "Flickr30K_ID": name}
        yield {**place, "gold_label": label, "sentence1": premise, "sentence2": hypothesis}


def write_shapes_snli_ve(folder: str | Path, seed: int = 0, scenes: Mapping[str, int] = SCENES) -> Path:
    """Write Shapes-SNLI-VE as SNLI-VE has it: three JSON-lines files, and a folder `flickr30k_images` of JPEG images.

    No picture occurs twice. The same arguments write the same data. The folder appears whole or not at all.

    Args:
        folder: Where to write; a new or an empty folder.
        seed: Seed of everything that is drawn, 0 or more.
        scenes: Images of `train`, `dev` and `test`, 1 or more each, with four hypotheses each.

    Returns:
        The folder, absolute.

    Raises:
        FileExistsError: The folder holds something.
        ValueError: A number is out of its range.
    """
    folder = new_folder(folder)
    check_scenes(seed, scenes, SCENES)
    pictures, number = NewPictures(), 0
    with whole_folder(folder) as partial, progress(sum(scenes.values()), "drawing Shapes-SNLI-VE", unit="scene") as bar:
        (partial / "flickr30k_images").mkdir()
        for rng, part in zip(np.random.default_rng(seed).spawn(len(SCENES)), SCENES, strict=True):
            lines: list[str] = []
            while len(lines) < scenes[part] * HYPOTHESES:
                scene, curtain, content = _draw(rng)
                if pictures.add(content):
                    (partial / "flickr30k_images" / f"{number:06d}.jpg").write_bytes(content)
                    lines += map(json.dumps, _entries(rng, f"{number:06d}", scene, curtain))
                    number += 1
                    bar.update()
            (partial / f"snli_ve_{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def shapes_snli_ve_root(cache: str | Path | None = None) -> Path:
    """The bundled Shapes-SNLI-VE, a `data_root`, written on first use (half a minute, about 9 MB); see `bundled_root`."""
    return bundled_root(f"shapes-snli-ve-{VERSION}", write_shapes_snli_ve, "Shapes-SNLI-VE", cache)
