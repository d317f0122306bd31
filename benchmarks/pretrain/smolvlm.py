"""SmolVLM-mini: its size, its tokens and its processor."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.pretrain.family import (
    IMAGE_TOKENS,
    TOKEN_SIZE,
    AnsweringModel,
    Prompt,
    initialise,
    untrained,
    vision_sizes,
)
from benchmarks.pretrain.questions import DESCRIPTION, INSTRUCTION
from benchmarks.pretrain.tokenizer import Tokens, train_chat_tokenizer
from das_gym.shapes.scenes import IMAGE_SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration
    from transformers.processing_utils import ProcessorMixin

SCALE_FACTOR = 2
"""Number of patches along each side that pixel shuffle merges into one token."""

VISION_LAYERS, DECODER_LAYERS = 3, 12
HALF = (0.5, 0.5, 0.5)

TOKENS = Tokens(
    special=("<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>"),
    phrases=(INSTRUCTION, DESCRIPTION, "\nAssistant:"),
    speakers=("User:", "Assistant:"),
    bos="<|im_start|>",
    eos="<end_of_utterance>",
    pad="<|im_end|>",
)
"""SmolVLM's own names, and what stands in every prompt."""

PROMPT = Prompt(
    before="<|im_start|>User:<fake_token_around_image><global-img>" + "<image>" * IMAGE_TOKENS + "<fake_token_around_image>",
    after="<end_of_utterance>\nAssistant:",
    end="<end_of_utterance>",
)

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}"
    "{% else %}{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""SmolVLM's, without videos."""


def build(hidden_size: int, tokenizer: PreTrainedTokenizerFast) -> SmolVLMForConditionalGeneration:
    """A SmolVLM with 3 vision and 12 decoder layers on 96 px images.

    Args:
        hidden_size: Of the decoder.
        tokenizer: Gives the size of the vocabulary and the special tokens.
    """
    from transformers import SmolVLMForConditionalGeneration

    model: SmolVLMForConditionalGeneration = untrained(
        SmolVLMForConditionalGeneration,
        hidden_size,
        DECODER_LAYERS,
        tokenizer,
        vision_config=vision_sizes(VISION_LAYERS, TOKEN_SIZE // SCALE_FACTOR),
        scale_factor=SCALE_FACTOR,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return model


def eyes(model: SmolVLMForConditionalGeneration) -> dict[str, nn.Module]:
    """The vision tower, and the connector with its pixel shuffle."""
    return {"vision": model.model.vision_model, "connector": model.model.connector}


def image_tokens(model: SmolVLMForConditionalGeneration, image: Tensor) -> Tensor:
    """(batch, image tokens, hidden_size) from (batch, 3, 96, 96) pixels."""
    return torch.stack(list(model.get_image_features(image[:, None]).pooler_output))


def make_processor(tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    """The processor: images whole at 96 px, pixels to -1..1.

    It is Idefics3's, which writes the same prompts and needs neither num2words nor a video decoder.
    """
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    side = {"longest_edge": IMAGE_SIZE}
    images = Idefics3ImageProcessorPil(
        size=side, max_image_size=side, do_image_splitting=False, image_mean=list(HALF), image_std=list(HALF)
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


SMOLVLM_MINI = AnsweringModel(
    build=build,
    initialise=partial(initialise, decoder_layers=DECODER_LAYERS),
    eyes=eyes,
    image_tokens=image_tokens,
    mention_layer=5,
    target_layer=9,
    make_tokenizer=partial(train_chat_tokenizer, TOKENS),
    make_processor=make_processor,
    prompt=PROMPT,
    mean=HALF,
    std=HALF,
)
