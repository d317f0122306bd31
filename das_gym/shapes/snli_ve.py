"""Shapes-SNLI-VE: hypotheses that scenes entail, contradict or leave open, generated from a seed in SNLI-VE's format.

Half of the images have a curtain, which may hide anything. An object that is not visible is therefore contradicted
without a curtain and left open with one; a visible object is entailed either way. A number is exact: with a curtain it
is contradicted by more objects than it says, and never entailed. Hypotheses are single facts of `das_gym.shapes.captions`,
half of them with a word changed.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageDraw

from das_gym.files import absolute_path
from das_gym.shapes.captions import CountFact, SceneCaption, sample_scene_caption
from das_gym.shapes.scenes import (
    IMAGE_SIZE,
    MAX_RADIUS,
    Scene,
    SeenImages,
    check_counts,
    encode_jpeg,
    pick,
    render,
    sample_scene,
    writing_data_set,
)

SCENES = {"train": 2000, "dev": 300, "test": 300}

HYPOTHESES = 4

CURTAIN_WIDTH = 28
CURTAIN_COLOR = (120, 120, 120)


def hypothesis_label(hypothesis: SceneCaption, is_true: bool, scene: Scene, curtain: bool) -> str:
    """Return the label of a single fact that is true of the visible objects or not; a curtain may hide others."""
    fact = hypothesis.facts[0]
    if curtain and isinstance(fact, CountFact):
        return "contradiction" if len(scene.matching(fact.color, fact.shape)) > fact.number else "neutral"
    if is_true:
        return "entailment"
    return "neutral" if curtain else "contradiction"


def _draw_hypothesis(rng: np.random.Generator, scene: Scene, curtain: bool) -> tuple[str, str]:
    caption = sample_scene_caption(rng, scene)
    while caption is None:
        caption = sample_scene_caption(rng, scene)
    hypothesis = SceneCaption((pick(rng, caption.facts),))
    is_true = bool(rng.random() < 0.5)
    hypothesis = hypothesis if is_true else pick(rng, hypothesis.changed(scene))
    return str(hypothesis), hypothesis_label(hypothesis, is_true, scene, curtain)


def _draw(rng: np.random.Generator) -> tuple[Scene, bool, bytes]:
    """Draw a scene that has captions, and whether it has a curtain, which hides no object; return its JPEG file too."""
    left = pick(rng, (0, IMAGE_SIZE - CURTAIN_WIDTH))
    curtain = bool(rng.random() < 0.5)
    nearest = left - MAX_RADIUS
    furthest = left + CURTAIN_WIDTH + MAX_RADIUS
    while True:
        scene = sample_scene(rng)
        # No object may touch the curtain: what is visible is visible as a whole.
        covered = curtain and any(nearest < item.x < furthest for item in scene.objects)
        if not covered and sample_scene_caption(rng, scene) is not None:
            break
    image = render(scene)
    if curtain:
        ImageDraw.Draw(image).rectangle((left, 0, left + CURTAIN_WIDTH - 1, IMAGE_SIZE), fill=CURTAIN_COLOR)
    return scene, curtain, encode_jpeg(image)


def _entries(rng: np.random.Generator, name: str, scene: Scene, curtain: bool) -> Iterator[dict[str, Any]]:
    labels: dict[str, str] = {}
    while len(labels) < HYPOTHESES:
        labels.setdefault(*_draw_hypothesis(rng, scene, curtain))
    premise = str(sample_scene_caption(rng, scene) or "")
    for number, (hypothesis, label) in enumerate(labels.items()):
        place = {"captionID": f"{name}.jpg#0", "pairID": f"{name}.jpg#0r{number}", "Flickr30K_ID": name}
        yield {**place, "gold_label": label, "sentence1": premise, "sentence2": hypothesis}


def write_shapes_snli_ve(folder: str | Path, seed: int = 0, scenes: Mapping[str, int] = SCENES) -> Path:
    """Write Shapes-SNLI-VE in SNLI-VE's format: three JSON-lines files, and a folder `flickr30k_images` of JPEG images.

    The same arguments write the same data into `folder`, which is new or empty. No image occurs twice.
    """
    folder = absolute_path(folder)
    check_counts(0, seed=seed)
    check_counts(1, **{part: scenes.get(part, 0) for part in SCENES})
    images = SeenImages()
    number = 0
    with writing_data_set(folder, "Shapes-SNLI-VE", sum(scenes.values())) as (partial, bar):
        (partial / "flickr30k_images").mkdir()
        for rng, part in zip(np.random.default_rng(seed).spawn(len(SCENES)), SCENES, strict=True):
            lines: list[str] = []
            while len(lines) < scenes[part] * HYPOTHESES:
                scene, curtain, content = _draw(rng)
                if images.add(content):
                    (partial / "flickr30k_images" / f"{number:06d}.jpg").write_bytes(content)
                    lines += map(json.dumps, _entries(rng, f"{number:06d}", scene, curtain))
                    number += 1
                    bar.update()
            (partial / f"snli_ve_{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
