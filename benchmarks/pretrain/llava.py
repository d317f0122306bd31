"""LLaVA-mini: its size, its tokens and its processor. It has many small layers, so that search over 24 is real."""

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
from das_gym.models.meter.inputs import CLIP_MEAN, CLIP_STD
from das_gym.shapes.scenes import IMAGE_SIZE

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
    from transformers.processing_utils import ProcessorMixin

VISION_LAYERS, DECODER_LAYERS = 4, 24
READ_LAYER = -2
"""LLaVA reads what goes into the vision tower's last layer."""

TOKENS = Tokens(
    special=("<unk>", "<s>", "</s>", "<pad>", "<image>"),
    phrases=(INSTRUCTION, DESCRIPTION, " ASSISTANT:", "\n"),
    speakers=("USER:", "ASSISTANT:"),
    bos="<s>",
    eos="</s>",
    pad="<pad>",
)
"""LLaVA-1.5's own names, and what stands in every prompt."""

PROMPT = Prompt(before="<s>USER: " + "<image>" * IMAGE_TOKENS + "\n", after=" ASSISTANT:", end="</s>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper + ':' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}"
    "{% else %}{% for line in message['content'] if line['type'] == 'image' %}{{ ' <image>\n' }}{% endfor %}"
    "{% for line in message['content'] if line['type'] == 'text' %}"
    "{{ '' if message['content'][0]['type'] == 'image' else ' ' }}{{ line['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA-1.5's prompts: USER: <image>, a line break, the question, ASSISTANT: the answer."""


def build(hidden_size: int, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A LLaVA with 4 vision layers, of which it reads 3, and 24 decoder layers on 96 px images.

    Args:
        hidden_size: Of the decoder.
        tokenizer: Gives the size of the vocabulary and the special tokens.
    """
    from transformers import LlavaForConditionalGeneration

    model: LlavaForConditionalGeneration = untrained(
        LlavaForConditionalGeneration,
        hidden_size,
        DECODER_LAYERS,
        tokenizer,
        vision_config={"model_type": "clip_vision_model", **vision_sizes(VISION_LAYERS, TOKEN_SIZE)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=READ_LAYER,
    )
    return model


def eyes(model: LlavaForConditionalGeneration) -> dict[str, nn.Module]:
    """The vision tower and the projector."""
    return {"vision": model.model.vision_tower, "projector": model.model.multi_modal_projector}


def image_tokens(model: LlavaForConditionalGeneration, image: Tensor) -> Tensor:
    """(batch, image tokens, hidden_size) from (batch, 3, 96, 96) pixels."""
    return torch.stack(tuple(model.get_image_features(image).pooler_output))


def make_processor(tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    """The processor: images whole at 96 px, CLIP's mean and deviation."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=TOKEN_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


LLAVA_MINI = AnsweringModel(
    build=build,
    initialise=partial(initialise, decoder_layers=DECODER_LAYERS),
    eyes=eyes,
    image_tokens=image_tokens,
    mention_layer=10,
    target_layer=18,
    make_tokenizer=partial(train_chat_tokenizer, TOKENS),
    make_processor=make_processor,
    prompt=PROMPT,
    mean=CLIP_MEAN,
    std=CLIP_STD,
)
