"""Prompts as the tokens of a model."""

import pytest
import torch

from das_gym.data.images import NoiseImage
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.inputs import Encoding, PromptProcessor


@pytest.mark.parametrize(
    ("name", "prompt", "text"),
    [
        ("llava", Prompt("what <image> and <image>", (NoiseImage(0),), "red"), "<image>"),
        ("llava", Prompt("what", (NoiseImage(0),), "  "), "answer"),
        ("llava", Prompt("what " * 600, (NoiseImage(0),), "red"), "512"),
        ("paligemma", Prompt("what", (), "red"), "image"),  # its processor has an `images` argument
        ("llama", Prompt("what", (NoiseImage(0),), "red"), "image"),
    ],
)
def test_encode_rejects_prompts_that_a_model_cannot_read(driven, name, prompt, text):
    with pytest.raises(ValueError, match=text):
        driven(name).processor.encode(prompt)


def test_encoding_without_pixels_has_empty_inputs_that_a_forward_expects():
    """DeepSeek-VL's larger one has images in two sizes, and its forward needs both."""
    pixels = {"pixel_values": torch.ones(1, 3, 32, 32), "high_res_pixel_values": torch.ones(1, 3, 64, 64)}
    kept = Encoding(torch.arange(4), 2, {}, {}, pixels).without_pixels()
    assert not kept.pixels
    assert kept.sizes["high_res_pixel_values"].shape == (0, 3, 64, 64)


@pytest.mark.parametrize("templated", [True, False])
def test_encode_leaves_out_line_breaks_next_to_an_image(driven, monkeypatch, templated):
    """LLaVA's conversations have `<image>` on a line of its own."""
    own = driven("llava").processor
    if not templated:
        monkeypatch.setattr(own.processor, "chat_template", None)
    processor = PromptProcessor(own.processor, (2,), 512)
    rounds = (("<image>\nhow many\nin words", "two"),)
    kept, broken = (
        processor.encode(Prompt(question, (NoiseImage(0), NoiseImage(1)), "red", rounds)).ids.tolist()
        for question in ("what<image>is it", "what\n<image>\nis it")
    )
    assert kept == broken
    plain = processor.encode(
        Prompt("what<image>is it", (NoiseImage(0), NoiseImage(1)), "red", (("<image>how many\nin words", "two"),))
    )
    assert kept == plain.ids.tolist()
