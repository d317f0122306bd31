"""From images and texts to the batches that a model or its encoders read."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from das_gym.data.images import ImageSource, OneImage
from das_gym.files import check_bundled, check_plain
from das_gym.models.source_files import check_links
from das_gym.names import first_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

Requests = dict[Any, tuple[Any, ...]]
"""The arguments of a processor's `read` for some pairs, by the key in its `ahead`."""

TEXT_BLOCK = 16
"""Texts are padded to a multiple of this many tokens, so that few shapes occur."""

BLOCK = 8

NO_FLOAT64 = ["mps"]
"""Types of devices that have no float64."""

NUM_OPS = 2
MAGNITUDE = 9
"""RandAugment: operations per image, and their strength, 0..30. Source: ViLT (arXiv 2102.03334), section 4.1, and METER."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor; the host does not wait for a copy to a GPU, which reads from pinned memory."""
    if device.type != "cuda" or not tensor.is_cpu:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_widest(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, or in float32 on a device of `NO_FLOAT64`."""
    return tensor.float() if tensor.device.type in NO_FLOAT64 else tensor.double()


def padded_length(tokens: int) -> int:
    """Return the next multiple of TEXT_BLOCK."""
    return -(-tokens // TEXT_BLOCK) * TEXT_BLOCK


@dataclass(frozen=True, slots=True)
class Pair(OneImage):
    """A text with an image, one row of a batch.

    Attributes:
        text: The sentence.
        image: The image.
        image_type: Token type of the image; 2 is NLVR2's second image.
    """

    text: str
    image: ImageSource
    image_type: int = 1

    @property
    def image_key(self) -> str:
        """Key of the image: equal for pairs that show the same image."""
        return self.image.key


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question with some images and its answer: a row of a batch of a generative model.

    Attributes:
        question: The user's text, with a mark `<image>` for an image; images without one come first.
        images: The images, in the order of the marks.
        answer: The reference answer; None if it is unknown, and the question alone is read.
        rounds: Earlier questions and answers.
        is_cut: Whether the answer is cut off, so that no end token follows.
    """

    question: str
    images: tuple[ImageSource, ...]
    answer: str | None
    rounds: tuple[tuple[str, str], ...] = ()
    is_cut: bool = False

    @property
    def text(self) -> str:
        """Earlier rounds, the question and the answer."""
        return "\n".join([*(said for both in self.rounds for said in both), self.question, self.answer or ""])

    @property
    def image_key(self) -> tuple[str, ...]:
        """Keys of the images: equal for prompts that show the same images."""
        return tuple(image.key for image in self.images)

    @property
    def length(self) -> int:
        """Number of characters of question and answer."""
        return len(self.question) + len(self.answer or "")


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens that a generative model reads as they are, without a chat template: a row of a batch.

    Attributes:
        ids: The tokens.
        start: Position of the first token to predict, 1 or more; tokens before it are only read.
    """

    ids: tuple[int, ...]
    start: int = 1

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """No images."""
        return ()

    @property
    def image_key(self) -> tuple[Any, ...]:
        """The tokens before `start`: passages with the same ones compute them once."""
        return self.ids[: self.start]

    @property
    def text(self) -> str:
        """The numbers of its tokens."""
        return " ".join(map(str, self.ids))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)


class PromptError(ValueError):
    """A prompt that a model cannot read."""

    def __init__(self, reason: str, prompt: Prompt | Passage) -> None:
        super().__init__(reason)
        self.prompt = prompt


@dataclass(frozen=True)
class Processor:
    """Makes a batch of tensors from pairs.

    Attributes:
        tokenizer: A transformers tokenizer.
        transform: Takes an RGB image, a size and a patch size in pixels, and returns (3, height, width) float32.
        image_size, patch_size: The sizes in pixels that `transform` gets.
        max_text_length: Longest text in tokens; longer ones are truncated.
        ahead: Images that another process has read already, by key, see `requests`.
    """

    tokenizer: PreTrainedTokenizerBase
    transform: Callable[[Image, int, int], Tensor]
    image_size: int
    patch_size: int
    max_text_length: int
    ahead: dict[Any, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        special = self.tokenizer.num_special_tokens_to_add()
        if self.max_text_length <= special:
            given = f"got {self.max_text_length}, expected more than the {special} special tokens of a text"
            raise ValueError(f"`max_text_length` is out of range: {given}")

    def image(self, source: ImageSource, augment: int | None = None) -> Tensor:
        """Return (3, height, width) float32, through RandAugment if `augment` gives its seed."""
        found = self.ahead.get((source.key, augment))
        return self.read(source, augment) if found is None else found

    def requests(self, pairs: Sequence[Pair], augment: tuple[int, int] | None, kept: Callable[[Any], bool]) -> Requests:
        """Return the images of the pairs to read, by key and augmentation seed; none for keys that are `kept` in a cache."""
        sources = {pair.image_key: pair.image for pair in pairs if not kept(pair.image_key)}
        seeds = {key: None if augment is None else augmentation_seed(*augment, key) for key in sources}
        return {(key, seeds[key]): (source, seeds[key]) for key, source in sources.items()}

    def read(self, source: ImageSource, augment: int | None) -> Tensor:
        """Read an image from its file; see `image`."""
        image = source.open()
        if augment is not None:
            image = randaugment(image, augment)
        return self.transform(image, self.image_size, self.patch_size)

    def square(self) -> Tensor:
        """Return (3, height, width) float32: a black square image, as the model reads it."""
        from PIL import Image

        return self.transform(Image.new("RGB", (self.image_size, self.image_size)), self.image_size, self.patch_size)

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (batch, tokens) int64, padded to `padded_length` of the longest text."""
        plain = {"split_special_tokens": True}  # a user's `</s>` is text, not the end of it
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_text_length, **plain)["input_ids"]
        tokens = min(padded_length(max(map(len, ids))), self.max_text_length)
        input_ids = torch.full((len(ids), tokens), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, text in enumerate(ids):
            input_ids[row, : len(text)] = torch.tensor(text)
            attention_mask[row, : len(text)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def tokens(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Return the tokens of the pairs' texts, as `texts` does."""
        return self.texts([pair.text for pair in pairs])

    def __call__(self, pairs: Sequence[Pair], augment: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Return the batch of some pairs.

        Args:
            pairs: At least one.
            augment: Seed and training step that augmentations are drawn with; None = no augmentation.

        Returns:
            `image` (batch, 3, height, width) float32, smaller images padded with zeros at their right and bottom,
            `input_ids` and `attention_mask` (batch, tokens) int64, `image_types` (batch,) int64.
        """
        sources = {pair.image.key: pair.image for pair in pairs}  # an image of several pairs is opened once
        seeds = dict.fromkeys(sources) if augment is None else {key: augmentation_seed(*augment, key) for key in sources}
        images = {key: self.image(source, seeds[key]) for key, source in sources.items()}
        height, width = (max(image.shape[side] for image in images.values()) for side in (1, 2))
        padded = [F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in (images[p.image.key] for p in pairs)]
        types = torch.tensor([pair.image_type for pair in pairs])
        return {"image": torch.stack(padded), "image_types": types, **self.tokens(pairs)}

    def identity(self) -> str:
        """Return a text that identifies all that a batch depends on besides its pairs: tokenizer, transform and sizes."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        vocabulary = hashlib.sha256(words.encode()).hexdigest()
        transform = f"{self.transform.__module__}.{getattr(self.transform, '__qualname__', self.transform)}"
        return f"{transform} {self.image_size} {self.patch_size} {self.max_text_length} {vocabulary}"


def _blocks(rows: list[int]) -> Iterator[list[int]]:
    """Yield BLOCK rows at a time, the rest in powers of two, so that few shapes occur and nothing is computed twice."""
    start = 0
    while start < len(rows):
        size = min(BLOCK, 1 << (len(rows) - start).bit_length() - 1)
        yield rows[start : start + size]
        start += size


def text_blocks(inputs: Mapping[str, Tensor]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield rows and their batch, all of the same padded length."""
    lengths = [min(padded_length(int(real)), inputs["input_ids"].shape[1]) for real in inputs["attention_mask"].sum(dim=1)]
    for length in sorted(set(lengths)):
        for rows in _blocks([row for row, other in enumerate(lengths) if other == length]):
            yield rows, {name: tensor[rows, :length] for name, tensor in inputs.items()}


def image_blocks(processor: Processor, sources: Sequence[ImageSource]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield rows and their batch, all of the same size; no more images than needed are in memory at a time."""
    waiting: defaultdict[torch.Size, dict[int, Tensor]] = defaultdict(dict)
    for row, source in enumerate(sources):
        image = processor.image(source)
        same = waiting[image.shape]
        same[row] = image
        if len(same) == BLOCK:
            yield list(same), {"image": torch.stack(list(same.values()))}
            same.clear()
    for same in waiting.values():
        for rows in _blocks(list(same)):
            yield rows, {"image": torch.stack([same[row] for row in rows])}


def real_tokens(hidden: Tensor, attend: Tensor | None, row: int) -> Tensor:
    """Return (tokens, hidden_size) without padding: a copy, so that the memory of the batch can be freed.

    `attend` lies on the CPU: on a GPU, the number of real tokens would have to be waited for.
    """
    if attend is None:
        return hidden.clone()
    return hidden[to_device(attend[row, 0, 0].nonzero()[:, 0], hidden.device)]


def pad_and_stack(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return (tokens, size) outputs as one (batch, tokens, size), and which tokens are real; None if nothing is padded."""
    lengths = [len(part) for part in parts]
    longest = max(lengths)
    hidden = torch.stack([F.pad(part, (0, 0, 0, longest - len(part))) for part in parts])
    real = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    return hidden, None if bool(real.all()) else to_device(real[:, None, None], hidden.device)


def meta_batch(text_tokens: int, image_shape: Sequence[int]) -> dict[str, Tensor]:
    """Return a batch of one text and one image of shape (3, height, width), without content."""
    ids = torch.empty(1, text_tokens, dtype=torch.long, device="meta")
    return {"image": torch.empty(1, *image_shape, device="meta"), "input_ids": ids, "attention_mask": ids}


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder, from its files alone: FileNotFoundError without any, ValueError for damaged ones."""
    from transformers import AutoTokenizer

    folder = Path(folder)
    check_plain(folder.glob("*"))
    check_links(folder)
    check_bundled(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise FileNotFoundError(
            f"{folder} holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt, or vocab.txt. Put the "
            "checkpoint's tokenizer there, or name its folder with `tokenizer=`"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds of errors for damaged files
        raise ValueError(
            f"the tokenizer in {folder} cannot be read ({type(error).__name__}: {first_line(error)}): it is damaged, or "
            "needs remote code, which is not run. Name the folder of another one with `tokenizer=`"
        ) from error


def find_tokenizer(
    folder: str | Path, vocab_size: int, pad: int, first: int | None = None, last: int | None = None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder; ValueError if it is not the model's.

    The model has `vocab_size` tokens, and pads with `pad`, begins texts with `first` and ends them with `last`; None = any
    special token.
    """
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} is not this model's: got {len(tokenizer)} tokens, expected at most {vocab_size}"
        )
    ids = tokenizer("a")["input_ids"]
    special = set(tokenizer.all_special_ids)
    wanted = {
        "pads with": (tokenizer.pad_token_id, {pad}),
        "begins texts with": (ids[0], special if first is None else {first}),
        "ends texts with": (ids[-1], special if last is None else {last}),
    }
    wrong = [f"{what} token {id}, not {min(known)}" for what, (id, known) in wanted.items() if known and id not in known]
    if wrong or not special:
        raise ValueError(
            f"the tokenizer in {folder} {', '.join(wrong) or 'has no special tokens'}: it is not this model's; "
            "name the folder of the right one with tokenizer="
        )
    return tokenizer


def randaugment(image: Image, seed: int) -> Image:
    """Return the image changed by torchvision's RandAugment; it keeps its size. See `augmentation_seed` for the seed.

    torchvision's operations are nearly, but not all, those of the code of ViLT and METER.
    """
    try:
        from torchvision.transforms import RandAugment
    except ImportError as error:
        raise ImportError("RandAugment needs torchvision: run pip install 'das_gym[augment]'") from error
    with torch.random.fork_rng(devices=[]):  # RandAugment takes no generator
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the GPU too
        return RandAugment(NUM_OPS, MAGNITUDE)(image)


def augmentation_seed(seed: int, step: int, key: str) -> int:
    """Return a seed for `randaugment`, 0..2^63 - 1, from the run's seed, the training step and the key of the image."""
    digest = hashlib.blake2b(f"{seed} {step} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
