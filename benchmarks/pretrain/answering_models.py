"""SmolVLM-mini and LLaVA-mini: a few vision layers and a small decoder on 96 px images."""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pretrain.family import IMAGE_TOKENS, AnsweringRecipe, Prompt, Size, vision_sizes
from benchmarks.pretrain.texts import DESCRIPTION, INSTRUCTION, PATCH_SIZE
from benchmarks.pretrain.tokenizer import Tokens
from das_gym.models.meter.inputs import CLIP_MEAN, CLIP_STD
from das_gym.registration import ASSETS
from das_gym.shapes.scenes import IMAGE_SIZE

SCALE_FACTOR = 2
"""Number of patches along each side that pixel shuffle merges into one token."""

HALF = (0.5, 0.5, 0.5)

SMOLVLM_TOKENS = Tokens(
    special=("<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>"),
    phrases=(INSTRUCTION, DESCRIPTION, "\nAssistant:"),
    speakers=("User:", "Assistant:"),
    bos="<|im_start|>",
    eos="<end_of_utterance>",
    pad="<|im_end|>",
)
"""SmolVLM's own names, and what stands in every prompt."""


class SmolVLMMini(AnsweringRecipe):
    """3 vision and 12 decoder layers."""

    size = Size(hidden_size=80, image_steps=3000, image_batch_size=16, steps=4800, batch_size=10, learning_rate=1e-3)
    mean = std = HALF
    tokens = SMOLVLM_TOKENS
    prompt = Prompt(
        before="<|im_start|>User:<fake_token_around_image><global-img>"
        + "<image>" * IMAGE_TOKENS
        + "<fake_token_around_image>",
        after="<end_of_utterance>\nAssistant:",
        end="<end_of_utterance>",
    )
    decoder_layers, mention_layer, target_layer = 12, 5, 9

    def build(self, hidden_size: int, tokenizer: Any) -> Any:
        from transformers import SmolVLMForConditionalGeneration

        return self.untrained(
            SmolVLMForConditionalGeneration,
            hidden_size,
            tokenizer,
            vision_config=vision_sizes(layers=3, patch_size=PATCH_SIZE // SCALE_FACTOR),
            scale_factor=SCALE_FACTOR,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        )

    def eyes(self, model: Any) -> dict[str, nn.Module]:
        """Return the vision tower, and the connector with its pixel shuffle."""
        return {"vision": model.model.vision_model, "connector": model.model.connector}

    def image_tokens(self, model: Any, image: Tensor) -> Tensor:
        return torch.stack(list(model.get_image_features(image[:, None]).pooler_output))

    def make_processor(self, tokenizer: Any) -> Any:
        return smolvlm_processor(tokenizer, IMAGE_SIZE, IMAGE_TOKENS)


def smolvlm_processor(tokenizer: Any, image_size: int, image_tokens: int) -> Any:
    """Return Idefics3's processor: it writes SmolVLM's prompts and needs neither num2words nor a video decoder."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    side = {"longest_edge": image_size}
    images = Idefics3ImageProcessorPil(
        size=side, max_image_size=side, do_image_splitting=False, image_mean=list(HALF), image_std=list(HALF)
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=image_tokens, chat_template=chat_template("smolvlm_mini"))


def chat_template(model: str) -> str:
    """Return the prompts of a bundled model as it is shipped: SmolVLM's without videos, or LLaVA-1.5's."""
    return (ASSETS / model / "chat_template.jinja").read_text(encoding="utf-8")


LLAVA_TOKENS = Tokens(
    special=("<unk>", "<s>", "</s>", "<pad>", "<image>"),
    phrases=(INSTRUCTION, DESCRIPTION, " ASSISTANT:", "\n"),
    speakers=("USER:", "ASSISTANT:"),
    bos="<s>",
    eos="</s>",
    pad="<pad>",
)
"""LLaVA-1.5's own names, and what stands in every prompt."""


class LlavaMini(AnsweringRecipe):
    """4 vision and 24 small decoder layers, so that search over 24 is real."""

    size = Size(hidden_size=64, image_steps=2500, image_batch_size=16, steps=3000, batch_size=8, learning_rate=1e-3)
    mean, std = CLIP_MEAN, CLIP_STD
    tokens = LLAVA_TOKENS
    prompt = Prompt(before="<s>USER: " + "<image>" * IMAGE_TOKENS + "\n", after=" ASSISTANT:", end="</s>")
    decoder_layers, mention_layer, target_layer = 24, 10, 18

    def build(self, hidden_size: int, tokenizer: Any) -> Any:
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
        return torch.stack(tuple(model.get_image_features(image).pooler_output))

    def make_processor(self, tokenizer: Any) -> Any:
        from transformers import CLIPImageProcessorPil, LlavaProcessor

        side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        return LlavaProcessor(
            CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side),
            tokenizer,
            patch_size=PATCH_SIZE,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=chat_template("llava_mini"),
        )
