"""Batches of conversations: endless scenes, several questions each, all on one copy of the scene's image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.pretrain.batches import IGNORE, ImageBatch, scene_images
from benchmarks.pretrain.family import AnsweringRecipe
from benchmarks.pretrain.texts import INSTRUCTION, describe, mentions, questions, target
from das_gym.shapes.scenes import IMAGE_SIZE, SceneObject, sample_scene
from das_gym.shapes.vqa import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CAPITALISED = 0.1
"""Share of the texts that begin with a capital letter."""


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
        places: (questions, tokens, 2) float32: there, the centre (x, y) of the one object, 0..1; NaN where it is not one.
        targets: (questions, tokens, 2) float32: before each answer, the centre of the object whose colour or shape it
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


def _place(item: SceneObject) -> tuple[float, float]:
    return item.x / IMAGE_SIZE, item.y / IMAGE_SIZE


def _asked_text(question: Question, capital: bool, instructed: bool) -> str:
    """Return the user's text."""
    if question.family == "description":
        return question.text
    first = question.text[0].upper() if capital else question.text[0]
    return first + question.text[1:] + (INSTRUCTION if instructed else "")


class ConversationBatches:
    """Makes batches of conversations, with `batch_size` images each."""

    def __init__(self, recipe: AnsweringRecipe, tokenizer: PreTrainedTokenizerFast, seed: int, batch_size: int) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.seed = seed
        self.batch_size = batch_size
        self.prefix = np.array(tokenizer(recipe.prompt.before)["input_ids"])

    def __call__(self, step: int, described: bool, instructed: bool = True) -> ConversationBatch:
        """Return the batch of a step.

        Args:
            step: Its index.
            described: Whether every scene is described as well.
            instructed: Whether the instruction to answer in a word follows each question.
        """
        rng = np.random.default_rng([self.seed, 2, step])
        scenes = [sample_scene(rng) for _ in range(self.batch_size)]
        asked: list[tuple[int, Question]] = []
        for row, scene in enumerate(scenes):
            asked += [(row, question) for question in questions(rng, scene)]
            asked += [(row, describe(scene))] if described else []
        capitals = rng.random(len(asked)) < CAPITALISED
        around = self.recipe.prompt
        prompts = [
            _asked_text(q, capital, instructed) + around.after for (_, q), capital in zip(asked, capitals, strict=True)
        ]
        starts = [prompt + around.answer_space for prompt in prompts]
        texts = [start + question.answer + around.end for start, (_, question) in zip(starts, asked, strict=True)]
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
                    places[index, token] = _place(objects[0])
            wanted = target(scenes[row], question)
            if wanted is not None:
                targets[index, answer - 1] = _place(wanted)
        prefix = np.tile(self.prefix, (len(scenes), 1))
        rows = np.array([row for row, _ in asked])
        mask = np.concatenate((np.ones_like(prefix)[rows], encoded["attention_mask"]), axis=1)
        arrays = (prefix, rows, ids, mask, labels, counts, places, targets)
        return ConversationBatch(scene_images(scenes, self.recipe.normalise), *map(torch.from_numpy, arrays))
