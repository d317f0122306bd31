"""SmolLM2 with eyes: SmolVLM's architecture with SmolLM2's decoder and the vision tower of the bundled smolvlm_mini.

The vocabulary keeps its size: three special tokens that SmolLM2-135M-Instruct has no use for are renamed to the marks that
SmolVLM's processor puts around an image.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.pretrain.answering_models import SmolVLMMini
from benchmarks.pretrain.batches import scene_images
from benchmarks.pretrain.family import IMAGE_TOKENS, Prompt
from benchmarks.pretrain.tokenizer import special_ids
from das_gym.registration import ASSETS
from das_gym.shapes.scenes import COLORS, SHAPES, sample_scene

TOWER = ASSETS / "smolvlm_mini"

RENAMED = {
    "<jupyter_start>": "<image>",
    "<jupyter_text>": "<fake_token_around_image>",
    "<jupyter_code>": "<global-img>",
}

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's own, with images and without its system message."""

RIDGE_SCENES = 400
RIDGE_PENALTY = 1.0


class SmolVLM135M(SmolVLMMini):
    """The bundled smolvlm_mini's 3 vision layers, and SmolLM2's 30 decoder layers."""

    prompt = Prompt(
        before="<|im_start|>user\n<fake_token_around_image><global-img>"
        + "<image>" * IMAGE_TOKENS
        + "<fake_token_around_image>",
        after="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        answer_space="",
    )
    decoder_layers, mention_layer, target_layer = 30, 12, 20


def load_tokenizer(folder: Path) -> Any:
    """Return SmolLM2's tokenizer with the renamed tokens."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    for old, new in RENAMED.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=list(RENAMED.values()),
        padding_side="left",
    )


def build_model(folder: Path, tokenizer: Any) -> Any:
    """Return SmolVLM with the weights of SmolLM2 in `folder` and of the bundled tower; its connector is untrained."""
    from transformers import GenerationConfig, LlamaForCausalLM, SmolVLMConfig, SmolVLMForConditionalGeneration

    text = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    eyes = SmolVLMForConditionalGeneration.from_pretrained(TOWER, dtype=torch.float32)
    special = special_ids(tokenizer)
    config = SmolVLMConfig(
        text_config=text.config.to_dict(),
        vision_config=eyes.config.vision_config.to_dict(),
        scale_factor=eyes.config.scale_factor,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
        **special,
    )
    model = SmolVLMForConditionalGeneration(config)
    model.model.text_model.load_state_dict(text.model.state_dict())
    model.model.vision_model.load_state_dict(eyes.model.vision_model.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(**special, max_new_tokens=16)
    return model.eval()


@torch.no_grad()
def start_connector(recipe: SmolVLM135M, model: Any, tokenizer: Any) -> float:
    """Set the connector by ridge regression from the tower's features onto words, and return its R2.

    The target of an image token is the sum of the embeddings of the color, the shape and the place of the object that it
    shows; a place lies between the words left and right, and top and bottom.
    """
    rng = np.random.default_rng(0)
    scenes = scene_images([sample_scene(rng) for _ in range(RIDGE_SCENES)], recipe.normalise)
    projection = model.model.connector.modality_projection.proj
    features = model.model.connector.pixel_shuffle(model.model.vision_model(scenes.image)[0], model.config.scale_factor)
    x = features.flatten(0, 1).double()
    embeddings = model.get_input_embeddings().weight

    def vectors(*words: str) -> Tensor:
        return torch.stack([embeddings[tokenizer(f" {word}")["input_ids"]].mean(0) for word in words])

    color = vectors(*COLORS, "nothing")[scenes.colors.flatten()]
    shape = vectors(*SHAPES, "nothing")[scenes.shapes.flatten()]
    right, bottom = scenes.centers.flatten(0, 1).split(1, -1)
    across = torch.lerp(*vectors("left", "right"), right)
    along = torch.lerp(*vectors("top", "bottom"), bottom)
    y = (color + shape + across + along).double()
    weight = torch.linalg.solve(x.T @ x + RIDGE_PENALTY * torch.eye(x.shape[1]).double(), x.T @ y)
    projection.weight.copy_(weight.T)
    return float(1 - (y - x @ weight).square().sum() / (y - y.mean(0)).square().sum())


def make_processor(tokenizer: Any) -> Any:
    """Return smolvlm_mini's processor with this tokenizer and its prompts."""
    processor = SmolVLM135M().make_processor(tokenizer)
    processor.chat_template = TEMPLATE
    return processor
