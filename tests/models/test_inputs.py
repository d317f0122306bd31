from dataclasses import replace

import pytest
import torch
from PIL import Image

from das_gym.models.inputs import Pair, Processor, load_tokenizer
from das_gym.models.vilt.inputs import vilt_transform


class Counted:
    """An image of one colour that counts how often it is opened."""

    def __init__(self, key: str, size: tuple[int, int] = (64, 64)) -> None:
        self.key, self.size, self.opened = key, size, 0

    def fingerprint(self) -> str:
        return self.key

    def open(self) -> Image.Image:
        self.opened += 1
        return Image.new("RGB", self.size, (10 * len(self.key), 0, 0))


@pytest.fixture
def processor(mini_folder) -> Processor:
    return Processor(load_tokenizer(mini_folder), vilt_transform, image_size=32, patch_size=16, max_text_length=8)


def test_shared_image_is_opened_once(processor):
    one, other = Counted("a"), Counted("bb", (64, 96))
    batch = processor([Pair("red", one), Pair("blue", other), Pair("a blue circle", one)])
    assert (one.opened, other.opened) == (1, 1)
    assert batch["image"].shape == (3, 3, 48, 32)
    assert torch.equal(batch["image"][0], batch["image"][2])
    assert not torch.equal(batch["image"][0], batch["image"][1])
    assert torch.equal(batch["image"][1], processor([Pair("blue", other)])["image"][0])


def test_augmented_images_are_those_of_seed_step_and_key(processor):
    pairs = [Pair("red", Counted("a")), Pair("blue", Counted("bb")), Pair("red", Counted("a"))]
    first, again, later = (processor(pairs, augment)["image"] for augment in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first, later)


def test_user_text_has_no_special_tokens(processor):
    """Else a question could end its text, or hide a word of it, by what it says."""
    tokenizer = processor.tokenizer
    tokens = processor.texts([tokenizer.eos_token, "red"])
    written, plain = (
        ids[mask.bool()].tolist() for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"], strict=True)
    )
    assert len(written) > 3  # letters between the marks that every text has
    assert not set(written[1:-1]) & set(tokenizer.all_special_ids)
    assert (written[0], written[-1]) == (plain[0], plain[-1])


def test_batch_keys_distinguish_settings(processor):
    """A transform need be no function with a name: torchvision's are objects with a repr."""

    class Scaled(str):  # a string is its own repr
        __slots__ = ()

    others = [replace(processor, **change) for change in ({"max_text_length": 7}, {"image_size": 48}, {"patch_size": 8})]
    others += [replace(processor, transform=Scaled(factor)) for factor in ("1.0", "2.0")]
    assert len({each.identity() for each in (processor, *others)}) == 6
    assert replace(processor).identity() == processor.identity()


def test_a_text_needs_room_for_a_word(processor):
    with pytest.raises(ValueError, match="`max_text_length` is out of range: got 2"):
        replace(processor, max_text_length=2)
