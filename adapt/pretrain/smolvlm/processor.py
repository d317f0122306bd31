"""SmolVLM-mini's tokenizer, chat template and image processor, and the one form in which it is asked and answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from das_gym.adapt.pretrain.smolvlm.language import DESCRIPTION, INSTRUCTION, describe, questions
from das_gym.adapt.pretrain.smolvlm.model import IMAGE_TOKENS

from das_gym.shapes.scenes import IMAGE_SIZE, sample_scene

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from transformers.processing_utils import ProcessorMixin

START, PAD, END = "<|im_start|>", "<|im_end|>", "<end_of_utterance>"
IMAGE, AROUND_IMAGE, GLOBAL_IMAGE = "<image>", "<fake_token_around_image>", "<global-img>"
SPECIAL_TOKENS = (START, PAD, END, IMAGE, AROUND_IMAGE, GLOBAL_IMAGE)
"""SmolVLM's own names; ids in this order."""

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}"
    "{% else %}{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""SmolVLM's, without videos."""

PHRASES = (INSTRUCTION, DESCRIPTION, "\nAssistant:")
"""What stands in every prompt is one token each: prompts are a quarter shorter."""

MAX_VOCABULARY = 1024
CORPUS_SCENES = 2000


def _corpus(seed: int) -> Iterator[str]:
    """All that is said to the model and by it, about a few scenes."""
    rng = np.random.default_rng(seed)
    yield from (f"User:{INSTRUCTION}", "Assistant:")
    for _ in range(CORPUS_SCENES):
        scene = sample_scene(rng)
        for question in [*questions(rng, scene), describe(scene)]:
            yield f"{question.text} {question.answer}"
            yield question.text[0].upper() + question.text[1:]


def train_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the language of Shapes: no text is out of vocabulary.

    A space is put before what follows a special token, so that a word has one id wherever it stands.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[IMAGE, AROUND_IMAGE, GLOBAL_IMAGE],
        padding_side="left",
        model_max_length=512,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    """The processor: images whole at 96 px, pixels to -1..1.

    It is Idefics3's, which writes the same prompts and needs neither num2words nor a video decoder.
    """
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    side = {"longest_edge": IMAGE_SIZE}
    half = [0.5, 0.5, 0.5]
    images = Idefics3ImageProcessorPil(
        size=side, max_image_size=side, do_image_splitting=False, image_mean=half, image_std=half
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def messages(text: str) -> list[dict[str, object]]:
    """One user's turn: the image, then the text."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
