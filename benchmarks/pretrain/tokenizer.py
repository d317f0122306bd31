"""The tokenizers of the mini models: byte-level BPE, so that no text is out of vocabulary."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.pretrain.texts import CAPTION_FAMILIES, INSTRUCTION, describe, questions
from das_gym.shapes.scenes import sample_scene
from das_gym.shapes.vqa import QUESTION_FAMILIES

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Tokens:
    """The tokens of a tokenizer that stand for no word of the language.

    Attributes:
        special: Special tokens; ids in this order.
        bos, eos, pad: Which of them begin a text, end an answer and fill up.
        unknown, mask: What is out of vocabulary, and a hidden word.
        phrases: What stands in every prompt is one token each: prompts are a quarter shorter.
        speakers: How turns begin.
    """

    special: tuple[str, ...]
    bos: str
    eos: str
    pad: str
    unknown: str = ""
    mask: str = ""
    phrases: tuple[str, ...] = ()
    speakers: tuple[str, str] = ("", "")

    @property
    def ends(self) -> tuple[int, int]:
        """The ids of what every text begins and ends with."""
        return self.special.index(self.bos), self.special.index(self.eos)


ROBERTA = Tokens(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s>", "</s>", "<pad>", "<unk>", "<mask>")
"""METER's. Padding has id 1, on which RoBERTa's position ids rely."""

BERT = Tokens(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
"""ViLT's. Padding has id 0, whose embedding ViLT keeps from training."""

VOCAB_SIZE, MAX_VOCABULARY = 512, 1024
"""Of METER and ViLT, and of models that answer in words."""

CORPUS_SCENES = 2000


def _corpus(seed: int) -> Iterator[str]:
    """Questions and captions of a few scenes."""
    rng = np.random.default_rng(seed)
    for _ in range(CORPUS_SCENES):
        scene = sample_scene(rng)
        for ask in QUESTION_FAMILIES.values():
            question = ask(rng, scene)
            if question is not None:
                yield question.text
        for say in CAPTION_FAMILIES.values():
            caption = say(rng, scene)
            if caption is not None:
                yield caption.text


def byte_level_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str], lowercase: bool) -> Tokenizer:
    """Train a byte-level BPE on texts: none is out of vocabulary. The ids of special tokens are 0, 1, ..."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_tokenizer(seed: int = 0, tokens: Tokens = ROBERTA) -> PreTrainedTokenizerFast:
    """Train a lower-casing tokenizer on the language of Shapes."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_bpe(_corpus(seed), VOCAB_SIZE, tokens.special, lowercase=True)
    first, last = tokens.ends
    tokenizer.post_processor = processors.RobertaProcessing((tokens.eos, last), (tokens.bos, first))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens.bos,
        eos_token=tokens.eos,
        pad_token=tokens.pad,
        unk_token=tokens.unknown,
        mask_token=tokens.mask,
    )


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Return the files that transformers reads the tokenizer from: name to content."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}


def special_ids(tokenizer: Any) -> dict[str, int]:
    """Return the ids of the tokens that begin, end and pad a text, as configurations name them."""
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def _chat_corpus(tokens: Tokens, seed: int) -> Iterator[str]:
    """All that is said to the model and by it, about a few scenes."""
    rng = np.random.default_rng(seed)
    user, assistant = tokens.speakers
    yield from (user + INSTRUCTION, assistant)
    for _ in range(CORPUS_SCENES):
        scene = sample_scene(rng)
        for question in [*questions(rng, scene), describe(scene)]:
            yield f"{question.text} {question.answer}"
            yield question.text[0].upper() + question.text[1:]


def train_chat_tokenizer(tokens: Tokens, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train a tokenizer on questions and answers about Shapes.

    A space is put before what follows a special token, so that a word has one id wherever it stands.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_bpe(_chat_corpus(tokens, seed), MAX_VOCABULARY, tokens.special, lowercase=False)
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
