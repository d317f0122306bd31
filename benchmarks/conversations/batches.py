"""Batches of conversations: endless scenes, several questions each, all on one copy of the scene's image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.conversations.models import Recipe
from benchmarks.conversations.questions import INSTRUCTION, answer_object, draw_questions, mentions
from das_gym.shapes.scene_language import Question
from das_gym.shapes.scenes import COLORS, IMAGE_SIZE, SHAPES, Scene, SceneObject, paint, render, sample_scene

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PATCH_SIZE = 16
"""Side in pixels of what an image token shows."""

MIN_SHARE = 0.15
"""Least share of a patch that an object covers to own it."""

CAPITALISED = 0.1
"""Share of the texts that begin with a capital letter."""

IGNORE = -100
"""Label of what no loss counts, as in torch's cross-entropy."""

BACKGROUND_COLOR, BACKGROUND_SHAPE = len(COLORS), len(SHAPES)


@dataclass(frozen=True)
class ImageBatch:
    """Scenes and what each of their patches shows.

    Attributes:
        image: (batch, 3, 96, 96) float32, normalized.
        colors: (batch, patches) int64 index into COLORS, or BACKGROUND_COLOR.
        shapes: (batch, patches) int64 index into SHAPES, or BACKGROUND_SHAPE.
        centers: (batch, patches, 2) float32: center (x, y) of the object that a patch shows, or of the patch
            itself where it shows none; 0..1 of the image.
        silhouettes: (batch, patches, pixels) float32: 1 where a pixel of the patch shows an object, else 0.
    """

    image: Tensor
    colors: Tensor
    shapes: Tensor
    centers: Tensor
    silhouettes: Tensor


def scene_images(scenes: Sequence[Scene], recipe: Recipe) -> ImageBatch:
    """Return the images of scenes as a model reads them, and what they show."""
    pixels = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).permute(0, 3, 1, 2)
    color_names = list(COLORS)
    shape_names = list(SHAPES)
    side = IMAGE_SIZE // PATCH_SIZE
    middle = (np.arange(side) + 0.5) / side
    own = np.stack((np.tile(middle, side), np.repeat(middle, side)), axis=1)
    colors = []
    shapes = []
    centers = []
    silhouettes = []
    for scene in scenes:
        owners = pixel_owners(scene)
        owner = patch_owners(owners, len(scene.objects))
        # An owner of -1, the background, picks the last entry.
        colors.append(np.array([*(color_names.index(o.color) for o in scene.objects), BACKGROUND_COLOR])[owner])
        shapes.append(np.array([*(shape_names.index(o.shape) for o in scene.objects), BACKGROUND_SHAPE])[owner])
        objects = np.array([center(item) for item in scene.objects])
        centers.append(np.where(owner[:, None] >= 0, objects[owner], own).astype(np.float32))
        cells = (owners >= 0).reshape(side, PATCH_SIZE, side, PATCH_SIZE).swapaxes(1, 2)
        silhouettes.append(cells.reshape(len(owner), -1).astype(np.float32))
    dense = (torch.from_numpy(np.stack(labels)) for labels in (colors, shapes, centers, silhouettes))
    return ImageBatch(recipe.normalize(pixels / 255), *dense)


def pixel_owners(scene: Scene) -> np.ndarray:
    """Return the object in each pixel, (96, 96) int64: an index into `scene.objects`, or -1 for background."""
    ids = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 0)
    draw = ImageDraw.Draw(ids)
    for index, item in enumerate(scene.objects):
        paint(draw, item, index + 1)
    return np.asarray(ids, dtype=np.int64) - 1


def patch_owners(owners: np.ndarray, n_objects: int) -> np.ndarray:
    """Return the object in each patch, (patches,) int64 in raster order, of (96, 96) `pixel_owners`; -1 for background."""
    side = IMAGE_SIZE // PATCH_SIZE
    cells = owners.reshape(side, PATCH_SIZE, side, PATCH_SIZE)
    numbers = np.arange(n_objects).reshape(-1, 1, 1, 1, 1)
    share = (cells[None] == numbers).mean(axis=(2, 4)).reshape(n_objects, -1)
    return np.where(share.max(axis=0) >= MIN_SHARE, share.argmax(axis=0), -1)


def center(item: SceneObject) -> tuple[float, float]:
    """Return the center (x, y) of an object, 0..1 of the image."""
    return item.x / IMAGE_SIZE, item.y / IMAGE_SIZE


@dataclass(frozen=True)
class ConversationBatch:
    """Images, and several questions with answers on each: (questions, tokens) from right after the image on.

    Attributes:
        images: The images.
        prefix_ids: (images, prefix tokens) int64: what the template writes before the text, the image in it.
        rows: (questions,) int64: index of the image that each is about.
        input_ids: (questions, tokens) int64, padded on the right.
        attention_mask: (questions, prefix tokens + tokens) int64.
        labels: (questions, tokens) int64: at the token before each token of an answer that token's id, else IGNORE.
        counts: (questions, tokens) int64: at the end of words that name objects how many they fit, else IGNORE.
        places: (questions, tokens, 2) float32: there, the center (x, y) of the one object, 0..1; NaN where it is not one.
        targets: (questions, tokens, 2) float32: before each answer, the center of the object whose color or shape it
            is, or NaN.
    """

    images: ImageBatch
    prefix_ids: Tensor
    rows: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    counts: Tensor
    places: Tensor
    targets: Tensor


class ConversationBatches:
    """Makes batches of conversations, with `batch_size` images each, each a function of seed and step alone."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int, batch_size: int) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.seed = seed
        self.batch_size = batch_size
        self.prefix = np.array(tokenizer(recipe.before)["input_ids"])

    def __call__(self, step: int, instructed: bool = True) -> ConversationBatch:
        """Return the batch of a step.

        Args:
            step: Its index.
            instructed: Whether the instruction to answer in a word follows each question.
        """
        rng = np.random.default_rng([self.seed, 2, step])
        scenes = [sample_scene(rng) for _ in range(self.batch_size)]
        asked = [(row, question) for row, scene in enumerate(scenes) for question in draw_questions(rng, scene)]
        capitals = rng.random(len(asked)) < CAPITALISED
        starts = [self._start(q, capital, instructed) for (_, q), capital in zip(asked, capitals, strict=True)]
        texts = [start + question.answer + self.recipe.end for start, (_, question) in zip(starts, asked, strict=True)]
        encoded = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="np")
        ids = encoded["input_ids"]
        labels = np.full(ids.shape, IGNORE)
        counts = np.full(ids.shape, IGNORE)
        places = np.full((*ids.shape, 2), np.nan, np.float32)
        targets = np.full((*ids.shape, 2), np.nan, np.float32)
        for index, (row, question) in enumerate(asked):
            answer = encoded.char_to_token(index, len(starts[index]))
            end = int(encoded["attention_mask"][index].sum())
            labels[index, answer - 1 : end - 1] = ids[index, answer:end]
            for last, objects in mentions(scenes[row], question.text):
                token = encoded.char_to_token(index, last)
                counts[index, token] = len(objects)
                if len(objects) == 1:
                    places[index, token] = center(objects[0])
            wanted = answer_object(scenes[row], question)
            if wanted is not None:
                targets[index, answer - 1] = center(wanted)
        prefix = np.tile(self.prefix, (len(scenes), 1))
        rows = np.array([row for row, _ in asked])
        mask = np.concatenate((np.ones_like(prefix)[rows], encoded["attention_mask"]), axis=1)
        arrays = (prefix, rows, ids, mask, labels, counts, places, targets)
        return ConversationBatch(scene_images(scenes, self.recipe), *map(torch.from_numpy, arrays))

    def _start(self, question: Question, capital: bool, instructed: bool) -> str:
        """Return all text between the image and the answer."""
        first = question.text[0].upper() if capital else question.text[0]
        instruction = INSTRUCTION if instructed else ""
        return first + question.text[1:] + instruction + self.recipe.after + self.recipe.answer_space
