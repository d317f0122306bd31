"""Batches for pre-training: endless scenes, each batch a function of seed and step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.pretrain.texts import CAPTION_FAMILIES, PATCH_SIZE, Caption, patch_owners, pixel_owners
from das_gym.shapes.scenes import COLORS, IMAGE_SIZE, SHAPES, Scene, render, sample_scene

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Normalise = Callable[[Tensor], Tensor]
"""From (batch, 3, height, width) pixels, 0..1, to what the model reads."""

IGNORE = -100
"""Label of what no loss counts, as in torch's cross-entropy."""

BACKGROUND_COLOR, BACKGROUND_SHAPE = len(COLORS), len(SHAPES)
NOT_MENTIONED, SUBJECT, OTHER = 0, 1, 2

FAMILY_WEIGHTS = {"attribute": 1.0, "existence": 1.0, "count": 1.0, "relation": 1.5, "nearest": 1.5}
"""How often each family of captions is drawn: relations are the hardest to learn."""

MASK_RATE = 0.25
"""Share of the words that masked language modelling hides; at least one a sentence."""


@dataclass(frozen=True)
class ImageBatch:
    """Scenes and what each of their patches shows.

    Attributes:
        image: (batch, 3, 96, 96) float32, normalised.
        colors: (batch, patches) int64 index into COLORS, or BACKGROUND_COLOR.
        shapes: (batch, patches) int64 index into SHAPES, or BACKGROUND_SHAPE.
        centers: (batch, patches, 2) float32: centre (x, y) of the object that a patch shows, or of the patch
            itself where it shows none; 0..1 of the image.
        silhouettes: (batch, patches, pixels) float32: 1 where a pixel of the patch shows an object, else 0.
    """

    image: Tensor
    colors: Tensor
    shapes: Tensor
    centers: Tensor
    silhouettes: Tensor


@dataclass(frozen=True)
class CaptionBatch:
    """Scenes with a caption each: half have hidden words, a quarter are true, a quarter false.

    Attributes:
        scenes: The images.
        input_ids, attention_mask: (batch, tokens) int64.
        words: (batch, tokens) int64: the hidden word's id where one is hidden, else IGNORE.
        matches: (batch,) int64: 1 = true, 0 = false, IGNORE where words are hidden.
        roles: (batch, patches) int64: NOT_MENTIONED, SUBJECT or OTHER; IGNORE for false captions.
        color_words, shape_words: (batch, tokens) int64: which colour or shape a visible word names, else -1.
        bearings: (batch, patches, 2) float32: at patches of the one subject, where the one other object lies from
            it, and the reverse; NaN elsewhere and for false captions.
        places: (batch, tokens, 2) float32: centre (x, y) of the object that a visible word of a true caption
            names, 0..1 of the image; NaN where there is none or several.
        offsets: (batch, 2) float32: from the one subject to the one other object, in the same unit; NaN if undefined.
    """

    scenes: ImageBatch
    input_ids: Tensor
    attention_mask: Tensor
    words: Tensor
    matches: Tensor
    roles: Tensor
    color_words: Tensor
    shape_words: Tensor
    bearings: Tensor
    places: Tensor
    offsets: Tensor


def image_batch(seed: int, step: int, batch_size: int, normalise: Normalise) -> ImageBatch:
    """Return scenes alone, for the first part."""
    rng = np.random.default_rng([seed, 0, step])
    return scene_images([sample_scene(rng) for _ in range(batch_size)], normalise)


def scene_images(scenes: Sequence[Scene], normalise: Normalise) -> ImageBatch:
    """Return the images of scenes, and what they show."""
    pixels = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).permute(0, 3, 1, 2)
    color_names = list(COLORS)
    shape_names = list(SHAPES)
    colors = []
    shapes = []
    centers = []
    silhouettes = []
    for scene in scenes:
        owner = patch_owners(scene)
        # An owner of -1, the background, picks the last entry.
        colors.append(np.array([*(color_names.index(o.color) for o in scene.objects), BACKGROUND_COLOR])[owner])
        shapes.append(np.array([*(shape_names.index(o.shape) for o in scene.objects), BACKGROUND_SHAPE])[owner])
        side = math.isqrt(len(owner))
        middle = (np.arange(side) + 0.5) / side
        own = np.stack((np.tile(middle, side), np.repeat(middle, side)), axis=1)
        objects = np.array([(o.x / IMAGE_SIZE, o.y / IMAGE_SIZE) for o in scene.objects])
        centers.append(np.where(owner[:, None] >= 0, objects[owner], own).astype(np.float32))
        cells = (pixel_owners(scene) >= 0).reshape(side, PATCH_SIZE, side, PATCH_SIZE).swapaxes(1, 2)
        silhouettes.append(cells.reshape(len(owner), -1).astype(np.float32))
    dense = (torch.from_numpy(np.stack(labels)) for labels in (colors, shapes, centers, silhouettes))
    return ImageBatch(normalise(pixels / 255), *dense)


def _captioned_scene(rng: np.random.Generator) -> tuple[Scene, Caption]:
    """Draw a caption of a family by weight, and a scene that offers one."""
    names = list(CAPTION_FAMILIES)
    weights = np.array([FAMILY_WEIGHTS[name] for name in names])
    say = CAPTION_FAMILIES[names[rng.choice(len(names), p=weights / weights.sum())]]
    while True:
        scene = sample_scene(rng)
        caption = say(rng, scene)
        if caption is not None:
            return scene, caption


def _places(scene: Scene, caption: Caption, colors: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Return (tokens, 2) the centre of the one mentioned object that a word names; NaN where there is none or several."""
    mentioned = [scene.objects[i] for i in (*caption.subjects, *caption.others)]
    color_names = list(COLORS)
    shape_names = list(SHAPES)
    places = np.full((len(colors), 2), np.nan, dtype=np.float32)
    for token in np.flatnonzero((colors >= 0) | (shapes >= 0)):
        if colors[token] >= 0:
            named = [o for o in mentioned if o.color == color_names[colors[token]]]
        else:
            named = [o for o in mentioned if o.shape == shape_names[shapes[token]]]
        if len(named) == 1:
            places[token] = named[0].x / IMAGE_SIZE, named[0].y / IMAGE_SIZE
    return places


def _offset(scene: Scene, caption: Caption) -> np.ndarray:
    """Return (2,) from the subject to the other object; NaN unless there is one of each."""
    if len(caption.subjects) != 1 or len(caption.others) != 1:
        return np.full(2, np.nan, dtype=np.float32)
    subject = scene.objects[caption.subjects[0]]
    other = scene.objects[caption.others[0]]
    return np.array([other.x - subject.x, other.y - subject.y], dtype=np.float32) / IMAGE_SIZE


class CaptionBatches:
    """Makes caption batches with a tokenizer that knows every colour and every shape as one token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int, batch_size: int, normalise: Normalise) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.batch_size = batch_size
        self.normalise = normalise
        self._color_of = self._word_table(list(COLORS))
        self._shape_of = self._word_table(list(SHAPES))

    def _word_table(self, words: list[str]) -> np.ndarray:
        """Return (vocab_size,) the index of the word that a token is, or -1."""
        table = np.full(len(self.tokenizer), -1)
        for index, word in enumerate(words):
            (token,) = self.tokenizer(f"a {word}", add_special_tokens=False)["input_ids"][1:]
            table[token] = index
        return table

    def __call__(self, step: int) -> CaptionBatch:
        """Return the batch of a step."""
        rng = np.random.default_rng([self.seed, 1, step])
        pairs = [_captioned_scene(rng) for _ in range(self.batch_size)]
        owners = [patch_owners(scene) for scene, _ in pairs]
        kind = rng.integers(4, size=self.batch_size)  # 0, 1: hidden words; 2: true; 3: false
        false = kind == 3
        texts = [c.false_text if wrong else c.text for (_, c), wrong in zip(pairs, false, strict=True)]
        encoded = self.tokenizer(texts, padding=True, return_tensors="np")
        ids, words = self._hide(rng, encoded["input_ids"], kind < 2)
        colors = self._color_of[ids]
        shapes = self._shape_of[ids]
        roles = np.full((self.batch_size, len(owners[0])), NOT_MENTIONED)
        for row, ((_, caption), owner) in enumerate(zip(pairs, owners, strict=True)):
            roles[row][np.isin(owner, caption.subjects)] = SUBJECT
            roles[row][np.isin(owner, caption.others)] = OTHER
        places = np.stack([_places(*pair, *named) for pair, *named in zip(pairs, colors, shapes, strict=True)])
        offsets = np.stack([_offset(*pair) for pair in pairs])
        # At the subject's patches the offset, at the other's its reverse.
        sign = np.select([roles == SUBJECT, roles == OTHER], [1.0, -1.0], np.nan)
        bearings = (sign[:, :, None] * offsets[:, None]).astype(np.float32)
        return CaptionBatch(
            scenes=scene_images([scene for scene, _ in pairs], self.normalise),
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(encoded["attention_mask"]),
            words=torch.from_numpy(words),
            matches=torch.from_numpy(np.where(kind < 2, IGNORE, np.where(false, 0, 1))),
            roles=torch.from_numpy(np.where(false[:, None], IGNORE, roles)),
            color_words=torch.from_numpy(colors),
            shape_words=torch.from_numpy(shapes),
            bearings=torch.from_numpy(np.where(false[:, None, None], np.nan, bearings)),
            places=torch.from_numpy(np.where(false[:, None, None], np.nan, places)),
            offsets=torch.from_numpy(np.where(false[:, None], np.nan, offsets)),
        )

    def _hide(self, rng: np.random.Generator, ids: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ids with words hidden in the chosen rows, and the labels of what is hidden."""
        special = np.isin(ids, self.tokenizer.all_special_ids)
        draw = np.where(special | ~rows[:, None], 2.0, rng.random(ids.shape))
        hidden = draw < MASK_RATE
        hidden[rows, draw.argmin(axis=1)[rows]] = True
        return np.where(hidden, self.tokenizer.mask_token_id, ids), np.where(hidden, ids, IGNORE)
