"""A tokenizer of the language of Shapes for a model that answers in words, and the one form in which it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.pretrain.tokenizer import byte_level_bpe
from benchmarks.pretrain.vlm.language import INSTRUCTION, describe, questions
from das_gym.shapes.scenes import sample_scene

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_VOCABULARY = 1024
CORPUS_SCENES = 2000


@dataclass(frozen=True)
class Tokens:
    """The tokens of a tokenizer that stand for no word of the language.

    Attributes:
        special: Special tokens; ids in this order.
        phrases: What stands in every prompt is one token each: prompts are a quarter shorter.
        speakers: How turns begin.
        bos, eos, pad: Which special tokens begin a text, end an answer and fill up.
    """

    special: tuple[str, ...]
    phrases: tuple[str, ...]
    speakers: tuple[str, str]
    bos: str
    eos: str
    pad: str


def _corpus(tokens: Tokens, seed: int) -> Iterator[str]:
    """All that is said to the model and by it, about a few scenes."""
    rng = np.random.default_rng(seed)
    user, assistant = tokens.speakers
    yield from (user + INSTRUCTION, assistant)
    for _ in range(CORPUS_SCENES):
        scene = sample_scene(rng)
        for question in [*questions(rng, scene), describe(scene)]:
            yield f"{question.text} {question.answer}"
            yield question.text[0].upper() + question.text[1:]


def train_tokenizer(tokens: Tokens, seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the language of Shapes: no text is out of vocabulary.

    A space is put before what follows a special token, so that a word has one id wherever it stands.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_bpe(_corpus(tokens, seed), MAX_VOCABULARY, tokens.special)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in tokens.phrases])
    named = (tokens.bos, tokens.eos, tokens.pad)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens.bos,
        eos_token=tokens.eos,
        pad_token=tokens.pad,
        additional_special_tokens=[token for token in tokens.special if token not in named],
        padding_side="left",
        model_max_length=512,
    )


def messages(text: str, picture: object = None) -> list[dict[str, object]]:
    """One user's turn: the image, or where it will be, then the text."""
    image = {"type": "image"} if picture is None else {"type": "image", "image": picture}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]
