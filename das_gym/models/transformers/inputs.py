"""From questions, images and answers to the inputs of a model of transformers."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from das_gym.files import check_bundled, check_plain, read_json
from das_gym.models.inputs import Passage, Prompt, PromptError, Requests
from das_gym.models.source_files import check_links
from das_gym.names import first_line

IMAGE_MARK = "<image>"
"""The place of an image in a question, as in LLaVA's data."""

SPECIAL_TOKENS = 2**16
"""Most that a folder may have: transformers compares each with all others."""

KEPT_ENCODINGS = 100_000


class Encoding(NamedTuple):
    """A prompt as tokens.

    Attributes:
        ids: (tokens,) int64: the question with its image tokens, and the answer.
        answer: Position of the answer's first token.
        types: Other values of each token, by name: (tokens, ...) int64.
        sizes: Other inputs that describe the images, by name.
        pixels: The images as the vision tower reads them, by name.
    """

    ids: Tensor
    answer: int
    types: dict[str, Tensor]
    sizes: dict[str, Tensor]
    pixels: dict[str, Tensor]

    def without_pixels(self) -> Encoding:
        """Return a copy without `pixel_values`; other pixel inputs that a forward expects are empty."""
        nothing = {name: value[:0] for name, value in self.pixels.items() if not name.startswith("pixel")}
        return self._replace(pixels={}, sizes=self.sizes | nothing)


@dataclass
class PromptProcessor:
    """Makes batches for a model that answers in words, with its own processor and chat template.

    Attributes:
        processor: transformers' processor, or the tokenizer of a text model.
        ends: Ids of the tokens that end an answer; the first is added if the chat template has none.
        max_length: Longest prompt with its answer, in tokens.
        answer_type: The token type of the answer's tokens; None = that of the token before them.
        ahead: Encodings that another process has read already, by prompt, see `requests`.
    """

    processor: Any
    ends: tuple[int, ...]
    max_length: int
    answer_type: int | None = None
    ahead: dict[Any, Encoding] = field(default_factory=dict, compare=False, repr=False)
    _kept: OrderedDict[Prompt, Encoding] = field(default_factory=OrderedDict, repr=False)
    _opened: tuple[Sequence[Any], list[Any]] = field(default=((), []), compare=False, repr=False)

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def takes_images(self) -> bool:
        """Whether the processor has a part that reads images; False for that of a text model."""
        return getattr(self.processor, "image_processor", None) is not None

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer's tokens, without special ones."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()

    def identity(self) -> str:
        """Return a hash of all that a batch depends on besides its prompts: tokenizer, image processor and template."""

        def plain(value: Any) -> Mapping[str, Any] | str:
            return value.to_dict() if hasattr(value, "to_dict") else str(value)

        images = json.dumps(getattr(self.processor, "image_processor", None), default=plain, sort_keys=True)
        words = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else str(self.tokenizer.get_vocab())
        template = getattr(self.processor, "chat_template", None)
        return hashlib.sha256(f"{images} {words} {template} {self.max_length}".encode()).hexdigest()[:16]

    def with_answer_type(self, answer_type: int | None) -> PromptProcessor:
        """Return a copy, with empty caches, that gives the tokens of answers this token type."""
        return replace(self, answer_type=answer_type, ahead={}, _kept=OrderedDict())

    def tokens(self, pairs: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and token types if any, (prompts, tokens) int64, padded at the right."""
        return make_batch([self.encode(prompt)._replace(sizes={}) for prompt in pairs], 0)

    def encode(self, prompt: Prompt | Passage, pixels: bool = False) -> Encoding:
        """Return the tokens of a prompt, cached, and with `pixels` its images; PromptError if it cannot be read."""
        if isinstance(prompt, Passage):
            return self._encode_passage(prompt)
        if not pixels and prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        encoding = self.ahead.get(prompt) or self.read(prompt)
        self._kept[prompt] = encoding.without_pixels()
        if len(self._kept) > KEPT_ENCODINGS:
            self._kept.popitem(last=False)
        return encoding if pixels else encoding.without_pixels()

    def _encode_passage(self, passage: Passage) -> Encoding:
        ids = torch.tensor(passage.ids)
        if len(ids) > self.max_length:
            raise PromptError(f"A text has {len(ids)} tokens, expected at most {self.max_length}.", passage)
        # Of a question without an image, the last token has the types of text.
        types = self.encode(Prompt("text", (), None)).types
        types = {name: value[-1:].repeat(len(ids), *[1] * (value.dim() - 1)) for name, value in types.items()}
        return Encoding(ids, passage.start, types, {}, {})

    def requests(self, pairs: Sequence[Prompt], augment: tuple[int, int] | None, kept: Callable[[Any], bool]) -> Requests:
        """Return the prompts to read; see `das_gym.models.inputs.Processor.requests`."""
        with_images = [prompt for prompt in pairs if prompt.images]
        return {prompt: (prompt,) for prompt in with_images if prompt not in self._kept or not kept(prompt.image_key)}

    def count_tokens(self, prompt: Prompt | Passage) -> int:
        """Return the number of tokens in the text of a prompt and its answer; its images are not opened."""
        if isinstance(prompt, Passage):
            return prompt.length
        self._check_images(prompt)
        asked = self._write(self._messages(prompt)) if self._has_template else None
        text = _lines(prompt) if asked is None else asked
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) + len(self._answer_ids(prompt, asked))

    def read(self, prompt: Prompt) -> Encoding:
        """Encode a prompt with pixels, read from its image files; see `encode`."""
        self._check_images(prompt)
        if self._opened[0] != prompt.images:  # questions about the same images are read one after the other
            self._opened = prompt.images, [image.open() for image in prompt.images]
        images = self._opened[1]
        asked = None
        if self._has_template:
            messages = self._messages(prompt, images)
            asked = self._write(messages)
            settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
            question = dict(self.processor.apply_chat_template(messages, **settings))
        else:
            question = self._encode_lines(prompt, images)
        ids = question.pop("input_ids")[0]
        question.pop("attention_mask", None)
        answer = torch.tensor(self._answer_ids(prompt, asked), dtype=torch.long)
        tokens = len(ids) + len(answer)
        if tokens > self.max_length:
            advice = "Remove it from the data, shorten it, or use smaller images."
            raise _unreadable(prompt, f"has {tokens} tokens with its answer, expected at most {self.max_length}. {advice}")
        types = {}
        sizes = {}
        pixels = {}
        for name, value in question.items():
            if name.startswith("pixel") or name.endswith("pixel_values"):  # DeepSeek-VL's high_res_pixel_values
                pixels[name] = value
            elif value.shape[:2] == (1, len(ids)):  # one value a token: types, or positions of several axes
                last = value[0, -1:] if self.answer_type is None else torch.full_like(value[0, -1:], self.answer_type)
                types[name] = torch.cat((value[0], last.repeat(len(answer), *[1] * (value.dim() - 2))))
            else:
                sizes[name] = value
        return Encoding(torch.cat((ids, answer)), len(ids), types, sizes, pixels)

    def _check_images(self, prompt: Prompt) -> None:
        marks = sum(text.count(IMAGE_MARK) for text in (prompt.question, *(asked for asked, _ in prompt.rounds)))
        if marks > len(prompt.images):
            raise _unreadable(prompt, f"has {marks} marks {IMAGE_MARK}, expected at most {len(prompt.images)}.")
        if prompt.images and not self.takes_images:
            raise _unreadable(prompt, "has an image, but the model reads only text.")

    @property
    def _has_template(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    def _write(self, messages: list[dict[str, Any]], ask: bool = True) -> str:
        if self.takes_images:  # images are only places for it
            messages = [
                {**m, "content": [{k: v for k, v in p.items() if k != "image"} for p in m["content"]]} for m in messages
            ]
        return self.processor.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False)

    def _encode_lines(self, prompt: Prompt, images: list[Any]) -> dict[str, Tensor]:
        text = _lines(prompt)
        token = getattr(self.processor, "image_token", None) or IMAGE_MARK
        if not self.takes_images:
            return dict(self.processor(text, return_tensors="pt"))
        text = token * (len(images) - text.count(IMAGE_MARK)) + text.replace(IMAGE_MARK, token)
        given = {"images": [images]} if images else {}
        try:
            return dict(self.processor(text=[text], **given, return_tensors="pt"))
        except (TypeError, ValueError) as error:
            if not images:
                raise _unreadable(prompt, f"has no image, but a {type(self.processor).__name__} requires one.") from error
        return dict(self.processor(text=[text], images=images, return_tensors="pt"))  # of all texts in one list

    def _messages(self, prompt: Prompt, images: Sequence[Any] = ()) -> list[dict[str, Any]]:
        left = list(images or prompt.images)
        asked = [*(question for question, _ in prompt.rounds), prompt.question]
        asked[0] = IMAGE_MARK * (len(left) - sum(text.count(IMAGE_MARK) for text in asked)) + asked[0]
        messages = []
        for number, question in enumerate(asked):
            messages.append({"role": "user", "content": self._content(question, left)})
            if number < len(prompt.rounds):
                messages.append({"role": "assistant", "content": self._content(prompt.rounds[number][1], [])})
        return messages

    def _content(self, text: str, images: list[Any]) -> Any:
        if not self.takes_images:
            return text
        parts: list[dict[str, Any]] = []
        for piece in re.split(f"({re.escape(IMAGE_MARK)})", text):
            if piece == IMAGE_MARK:
                parts.append({"type": "image", "image": images.pop(0)})
            elif piece.strip():
                parts.append({"type": "text", "text": piece.strip("\n") if parts else piece.strip()})
        return parts

    def _answer_ids(self, prompt: Prompt, asked: str | None) -> list[int]:
        """Return the tokens of the answer, as the chat template writes it, and the one that ends it unless it is cut."""
        text = prompt.answer
        if text is None:
            return []
        if asked is not None:
            messages = [*self._messages(prompt), {"role": "assistant", "content": self._content(text, [])}]
            written = self._write(messages, ask=False)
            text = written[len(asked) :] if written.startswith(asked) else text
            text = text if any(self.tokenizer.decode([end]) in text for end in self.ends) else text.rstrip()
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        if not (prompt.answer or "").strip() or not ids or end == 0:
            raise _unreadable(prompt, f"has an answer without tokens: got {prompt.answer!r}.")
        if prompt.is_cut:
            return ids[:end]
        return [*ids, self.ends[0]] if end is None else ids[: end + 1]


def make_batch(encodings: Sequence[Encoding], pad: int, padding_side: str = "right") -> dict[str, Tensor]:
    """Make a padded batch of prompts: `input_ids`, `attention_mask`, token types, sizes of images."""

    def together(parts: list[Tensor], value: int = 0) -> Tensor:
        return pad_sequence(parts, batch_first=True, padding_value=value, padding_side=padding_side)

    batch = {"input_ids": together([e.ids for e in encodings], pad)}
    batch["attention_mask"] = together([torch.ones_like(e.ids) for e in encodings])
    for name in encodings[0].types:
        batch[name] = together([e.types[name] for e in encodings])
    names = {name: None for encoding in encodings for name in encoding.sizes}
    return batch | {name: torch.cat([e.sizes[name] for e in encodings if name in e.sizes]) for name in names}


IMAGE_WORDS = ("image", "video", "vision", "media", "boi", "eoi")
"""Parts of the settings that name tokens which stand for images."""


def image_token_ids(model: Any) -> list[int]:
    """Return the ids of the tokens that stand for images, which no answer has."""
    configs = (model.config, model.config.get_text_config(decoder=True))
    named = {n: v for config in configs for n, v in vars(config).items() if n.endswith(("_token_id", "_token_index"))}
    return sorted({v for n, v in named.items() if isinstance(v, int) and any(word in n for word in IMAGE_WORDS)})


def load_processor(folder: Path, trust_remote_code: bool = False) -> Any:
    """Load the processor in a folder, or its tokenizer if the model reads only text; FileNotFoundError without either."""
    from transformers import AutoProcessor

    check_plain(folder.glob("*"))
    check_links(folder, trust_remote_code)
    check_bundled(folder)
    for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        settings = read_json(path) if path.is_file() else {}
        for name in ("extra_special_tokens", "additional_special_tokens"):
            tokens = settings.get(name) if isinstance(settings, dict) else None
            if isinstance(tokens, list | dict) and len(tokens) > SPECIAL_TOKENS:
                raise ValueError(f"{path}: too many {name}: got {len(tokens):,}, expected at most {SPECIAL_TOKENS:,}")
    try:
        return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileNotFoundError(
            f"{folder} holds no processor that transformers can read ({first_line(error)}). Copy "
            "preprocessor_config.json, processor_config.json and the tokenizer's files from where the weights came, or pass "
            "their folder as `tokenizer`."
        ) from error


def load_folder_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a folder, see `load_processor`."""
    processor = load_processor(folder, trust_remote_code)
    return getattr(processor, "tokenizer", processor)


def _lines(prompt: Prompt) -> str:
    """Return earlier rounds and the question line by line, for processors without a chat template.

    Line breaks next to an image are left out, as they are from the messages for a chat template.
    """
    lines = [*(line for both in prompt.rounds for line in both), prompt.question]
    return "\n".join(re.sub(rf"\n*{re.escape(IMAGE_MARK)}\n*", IMAGE_MARK, line) for line in lines)


def _unreadable(prompt: Prompt, reason: str) -> PromptError:
    text = prompt.question if len(prompt.question) <= 60 else f"{prompt.question[:57]}..."
    return PromptError(f"The question {text!r} {reason}", prompt)
