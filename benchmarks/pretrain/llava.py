"""LLaVA-mini: 4 vision layers and 24 small decoder layers on 96 px images, so that search over 24 is real."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pretrain.captions import PATCH_SIZE
from benchmarks.pretrain.family import IMAGE_TOKENS, AnsweringRecipe, Prompt, Size, vision_sizes
from benchmarks.pretrain.questions import DESCRIPTION, INSTRUCTION
from benchmarks.pretrain.tokenizer import Tokens
from das_gym.models.meter.inputs import CLIP_MEAN, CLIP_STD
from das_gym.shapes.scenes import IMAGE_SIZE

TOKENS = Tokens(
    special=("<unk>", "<s>", "</s>", "<pad>", "<image>"),
    phrases=(INSTRUCTION, DESCRIPTION, " ASSISTANT:", "\n"),
    speakers=("USER:", "ASSISTANT:"),
    bos="<s>",
    eos="</s>",
    pad="<pad>",
)
"""LLaVA-1.5's own names, and what stands in every prompt."""

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


class LlavaMini(AnsweringRecipe):
    """See `AnsweringRecipe`."""

    size = Size(hidden_size=64, image_steps=2500, image_batch_size=16, steps=3000, batch_size=8, learning_rate=1e-3)
    mean, std = CLIP_MEAN, CLIP_STD
    tokens = TOKENS
    prompt = Prompt(before="<s>USER: " + "<image>" * IMAGE_TOKENS + "\n", after=" ASSISTANT:", end="</s>")
    decoder_layers, mention_layer, target_layer = 24, 10, 18

    def build(self, hidden_size: int, tokenizer: Any) -> Any:
        """See `AnsweringRecipe.build`."""
        from transformers import LlavaForConditionalGeneration

        return self.untrained(
            LlavaForConditionalGeneration,
            hidden_size,
            tokenizer,
            vision_config={"model_type": "clip_vision_model", **vision_sizes(layers=4, patch_size=PATCH_SIZE)},
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=IMAGE_TOKENS,
            vision_feature_layer=-2,  # LLaVA reads what goes into the vision tower's last layer
        )

    def eyes(self, model: Any) -> dict[str, nn.Module]:
        """Return the vision tower and the projector."""
        return {"vision": model.model.vision_tower, "projector": model.model.multi_modal_projector}

    def image_tokens(self, model: Any, image: Tensor) -> Tensor:
        """See `AnsweringRecipe.image_tokens`."""
        return torch.stack(tuple(model.get_image_features(image).pooler_output))

    def make_processor(self, tokenizer: Any) -> Any:
        """See `AnsweringRecipe.make_processor`."""
        from transformers import CLIPImageProcessorPil, LlavaProcessor

        side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        return LlavaProcessor(
            CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side),
            tokenizer,
            patch_size=PATCH_SIZE,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )
