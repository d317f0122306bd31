"""From questions, pictures and answers to what a model of transformers reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from das_gym.bundled import check_bundled
from das_gym.files import check_plain, read_json
from das_gym.models.inputs import Prompt, PromptError, Requests

IMAGE_MARK = "<image>"
"""Where a picture stands in a question, as in LLaVA's data."""

SPECIAL_TOKENS = 2**16
"""Most that a folder may name apart: transformers compares each with all others as it reads them."""

KEPT_ENCODINGS = 100_000
"""Prompts whose tokens are remembered."""


class Encoding(NamedTuple):
    """A prompt as tokens.

    Attributes:
        ids: (tokens,) int64: the question with its pictures' tokens, and the answer.
        answer: Where the answer begins in them.
        types: Other values a token, by name: (tokens, ...) int64.
        sizes: What else the model wants to know of the pictures besides their pixels, by name.
        pixels: The pictures as the vision tower reads them, by name.
    """

    ids: Tensor
    answer: int
    types: dict[str, Tensor]
    sizes: dict[str, Tensor]
    pixels: dict[str, Tensor]

    def light(self) -> Encoding:
        """The same without the pixels; nothing stands for those that a forward wants to be given beside `pixel_values`."""
        nothing = {name: value[:0] for name, value in self.pixels.items() if not name.startswith("pixel")}
        return self._replace(pixels={}, sizes=self.sizes | nothing)


@dataclass
class PromptProcessor:
    """Makes batches for a model that answers in words, by its own processor and chat template.

    Attributes:
        processor: transformers' processor, or the tokenizer of a model without pictures.
        ends: Ids of the tokens that end an answer, the first of which is put where the template has none.
        max_length: Longest prompt with its answer, in tokens.
        answer_type: The token type of the answer's tokens; None = that of the token before them.
        ahead: What another process has read already, by prompt, see `requests`.
    """

    processor: Any
    ends: tuple[int, ...]
    max_length: int
    answer_type: int | None = None
    ahead: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
    _kept: OrderedDict[Prompt, Encoding] = field(default_factory=OrderedDict, repr=False)
    _opened: tuple[Sequence[Any], list[Any]] = field(default=((), []), compare=False, repr=False)

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def sees(self) -> bool:
        """Whether it takes pictures."""
        return getattr(self.processor, "image_processor", None) is not None

    def decode(self, tokens: Sequence[int]) -> str:
        """What tokens of an answer say, without special ones."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()

    def identity(self) -> str:
        """Changes with anything that a batch depends on besides its prompts."""
        seen = json.dumps(getattr(self.processor, "image_processor", None), default=_settings, sort_keys=True)
        words = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else str(self.tokenizer.get_vocab())
        template = getattr(self.processor, "chat_template", None)
        return hashlib.sha256(f"{seen} {words} {template} {self.max_length}".encode()).hexdigest()[:16]

    def with_answer_type(self, answer_type: int | None) -> PromptProcessor:
        """The same for answers of a token type, with nothing remembered."""
        return replace(self, answer_type=answer_type, ahead={}, _kept=OrderedDict())

    def tokens(self, pairs: Sequence[Prompt]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (prompts, tokens) int64, and what else there is a token, padded at the right."""
        return batch_of([self.encode(prompt)._replace(sizes={}) for prompt in pairs], 0)

    def encode(self, prompt: Prompt, pixels: bool = False) -> Encoding:
        """The tokens of a prompt, remembered; with the pixels of its pictures where they are asked for.

        Raises:
            ValueError: pictures for a model that sees none, marks that do not fit the pictures, an answer without
                tokens, or a prompt longer than the model reads.
        """
        if not pixels and prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        found: Encoding | None = self.ahead.get(prompt)
        encoding = self.read(prompt) if found is None else found
        self._kept[prompt] = encoding.light()
        if len(self._kept) > KEPT_ENCODINGS:
            self._kept.popitem(last=False)
        return encoding if pixels else encoding.light()

    def requests(
        self, pairs: Sequence[Prompt], augment: tuple[int, int] | None, kept: Callable[[Hashable], bool]
    ) -> Requests:
        """What has to be read for some prompts, see `das_gym.models.inputs.Processor.requests`."""
        del augment
        seen = [prompt for prompt in pairs if prompt.images]
        return {prompt: (prompt,) for prompt in seen if prompt not in self._kept or not kept(prompt.image_key)}

    def count_words(self, prompt: Prompt) -> int:
        """How many tokens the text of a prompt comes to with its answer; its pictures are not opened.

        Raises:
            ValueError: as `encode`, but for the length.
        """
        self._check(prompt)
        asked = self._asked(prompt) if self._templated else None
        answer = self._answer_ids(prompt, asked)
        text = _plainly(prompt) if asked is None else asked
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) + len(answer)

    def read(self, prompt: Prompt) -> Encoding:
        """As `encode` with pixels, from the pictures' files."""
        self._check(prompt)
        question, said = self._ask(prompt)
        ids = question.pop("input_ids")[0]
        answer = torch.tensor(self._answer_ids(prompt, said), dtype=torch.long)
        whole = torch.cat((ids, answer))
        if len(whole) > self.max_length:
            raise PromptError(
                f"{_short(prompt)} comes to {len(whole)} tokens with its answer's {len(answer)}, the model reads "
                f"{self.max_length}: take it out of the data, shorten it, or make its pictures smaller",
                prompt,
            )
        question.pop("attention_mask", None)
        types, sizes, seen = {}, {}, {}
        for name, value in question.items():
            if name.startswith("pixel") or name.endswith("pixel_values"):  # DeepSeek-VL's high_res_pixel_values
                seen[name] = value
            elif value.shape[:2] == (1, len(ids)):
                last = value[0, -1:] if self.answer_type is None else torch.full_like(value[0, -1:], self.answer_type)
                types[name] = torch.cat((value[0], last.repeat(len(answer), *(1 for _ in value.shape[2:]))))
            else:
                sizes[name] = value
        return Encoding(whole, len(ids), types, sizes, seen)

    def _check(self, prompt: Prompt) -> None:
        marks = sum(text.count(IMAGE_MARK) for text in (prompt.question, *(asked for asked, _ in prompt.rounds)))
        if marks > len(prompt.images):
            raise PromptError(f"{_short(prompt)} has {marks} marks {IMAGE_MARK} for {len(prompt.images)} pictures", prompt)
        if prompt.images and not self.sees:
            raise PromptError(
                f"{_short(prompt)} has a picture, and this model reads text alone: use data without pictures", prompt
            )

    @property
    def _templated(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    def _ask(self, prompt: Prompt) -> tuple[dict[str, Tensor], str | None]:
        """The inputs of the question, and its text as the template writes it; None without a template."""
        if self._opened[0] != prompt.images:  # questions about the same images are read one behind the other
            self._opened = prompt.images, [image.open() for image in prompt.images]
        pictures = self._opened[1]
        if not self._templated:
            return self._ask_plainly(prompt, pictures), None
        messages = self._messages(prompt, pictures)
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        given = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        return dict(self.processor.apply_chat_template(messages, **given)), text

    def _ask_plainly(self, prompt: Prompt, pictures: list[Any]) -> dict[str, Tensor]:
        """Without a chat template: earlier rounds and the question line by line, the pictures' marks where they stand."""
        text = _plainly(prompt)
        token = getattr(self.processor, "image_token", None) or IMAGE_MARK
        if not self.sees:
            return dict(self.processor(text, return_tensors="pt"))
        lacking = len(pictures) - text.count(IMAGE_MARK)
        text = token * lacking + text.replace(IMAGE_MARK, token)
        if not pictures:
            try:
                return dict(self.processor(text=[text], return_tensors="pt"))
            except ValueError as error:
                raise PromptError(
                    f"{_short(prompt)} has no picture, and a {type(self.processor).__name__} reads no text without one: "
                    "take it out of the data, or give it a picture",
                    prompt,
                ) from error
        try:
            return dict(self.processor(text=[text], images=[pictures], return_tensors="pt"))
        except (TypeError, ValueError):  # some processors take the pictures of all texts in one list
            return dict(self.processor(text=[text], images=pictures, return_tensors="pt"))

    def _messages(self, prompt: Prompt, pictures: Sequence[Any]) -> list[dict[str, Any]]:
        """The conversation up to the question, as chat templates read it."""
        asked = [*(question for question, _ in prompt.rounds), prompt.question]
        said = [answer for _, answer in prompt.rounds]
        lacking = len(pictures) - sum(text.count(IMAGE_MARK) for text in asked)
        asked[0] = IMAGE_MARK * lacking + asked[0]
        left = list(pictures)
        messages = []
        for number, question in enumerate(asked):
            messages.append({"role": "user", "content": self._content(question, left)})
            if number < len(said):
                messages.append({"role": "assistant", "content": self._content(said[number], [])})
        return messages

    def _content(self, text: str, pictures: list[Any]) -> Any:
        """A message's content; pictures are taken from the list."""
        if not self.sees:
            return text
        parts: list[dict[str, Any]] = []
        for piece in re.split(f"({re.escape(IMAGE_MARK)})", text):
            if piece == IMAGE_MARK:
                parts.append({"type": "image", "image": pictures.pop(0)})
            elif piece.strip():
                parts.append({"type": "text", "text": piece.strip("\n") if parts else piece.strip()})
        return parts

    def _answer_ids(self, prompt: Prompt, asked: str | None) -> list[int]:
        """The tokens of the answer and of what ends it; none of an answer that nobody knows."""
        answer = prompt.answer
        if answer is None:
            return []
        text = answer if asked is None else self._answer_text(prompt, asked, answer)
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        ids = ids[:end] if end is None else ids[: end + 1]
        if not answer.strip() or not ids or ids[0] in self.ends:
            raise PromptError(
                f"{_short(prompt)}: the answer {answer!r} comes to no token: take it out of the data, or give another",
                prompt,
            )
        return ids if end is not None else [*ids, self.ends[0]]

    def _asked(self, prompt: Prompt) -> str:
        """The question as the template writes it."""
        text: str = self.processor.apply_chat_template(self._said(prompt), add_generation_prompt=True, tokenize=False)
        return text

    def _said(self, prompt: Prompt) -> list[dict[str, Any]]:
        """As `_messages`, with places for pictures alone."""
        messages = self._messages(prompt, [object() for _ in prompt.images])
        for message in messages:
            for part in message["content"] if self.sees else ():
                part.pop("image", None)
        return messages

    def _answer_text(self, prompt: Prompt, asked: str, answer: str) -> str:
        """What the template writes behind the question when an answer has been given."""
        messages = self._said(prompt)
        messages.append({"role": "assistant", "content": self._content(answer, [])})
        whole = self.processor.apply_chat_template(messages, tokenize=False)
        text = whole[len(asked) :] if whole.startswith(asked) else answer
        return text if any(self.tokenizer.decode([end]) in text for end in self.ends) else text.rstrip()


def batch_of(encodings: Sequence[Encoding], pad: int, extra: int = 0) -> dict[str, Tensor]:
    """A batch of prompts, padded at the right: `input_ids`, `attention_mask`, token types, sizes of pictures.

    Args:
        encodings: At least one.
        pad: Id of padding.
        extra: Padding behind the longest.
    """
    longest = max(len(encoding.ids) for encoding in encodings) + extra
    padded = [torch.nn.functional.pad(e.ids, (0, longest - len(e.ids)), value=pad) for e in encodings]
    lengths = torch.tensor([len(encoding.ids) for encoding in encodings])
    batch = {"input_ids": torch.stack(padded), "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}
    for name in encodings[0].types:
        batch[name] = torch.stack([_lengthened(e.types[name], longest) for e in encodings])
    names = {name: None for encoding in encodings for name in encoding.sizes}
    return batch | {name: torch.cat([e.sizes[name] for e in encodings if name in e.sizes]) for name in names}


def _lengthened(values: Tensor, tokens: int) -> Tensor:
    """(tokens, ...) with zeros behind what is there."""
    return torch.cat((values, values.new_zeros(tokens - len(values), *values.shape[1:])))


def load_processor(folder: Path, trust_remote_code: bool = False) -> Any:
    """Transformers' processor of a folder, or its tokenizer where the model reads text alone; nothing is downloaded.

    Raises:
        FileNotFoundError: the folder holds none that transformers can read.
        ValueError: a file of it is not a regular file, or names special tokens without end.
    """
    from transformers import AutoProcessor

    check_plain(folder.glob("*"))
    check_bundled(folder)
    _check_special_tokens(folder)
    try:
        return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileNotFoundError(
            f"{folder} holds no processor that transformers can read ({str(error).splitlines()[0]}); copy "
            "preprocessor_config.json, processor_config.json and the tokenizer's files from where the weights came, "
            "or name their folder with tokenizer="
        ) from error


def _check_special_tokens(folder: Path) -> None:
    for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        settings = read_json(path) if path.is_file() else {}
        for name in ("extra_special_tokens", "additional_special_tokens") if isinstance(settings, dict) else ():
            named = settings.get(name)
            if isinstance(named, list | dict) and len(named) > SPECIAL_TOKENS:
                raise ValueError(
                    f"{path} names {len(named):,} {name}, and {SPECIAL_TOKENS:,} are the most that may be: it is damaged"
                )


def _plainly(prompt: Prompt) -> str:
    """What is asked without a chat template: earlier rounds and the question line by line."""
    return "\n".join([*(line for both in prompt.rounds for line in both), prompt.question])


def _short(prompt: Prompt) -> str:
    text = prompt.question if len(prompt.question) <= 60 else f"{prompt.question[:57]}..."
    return f"the question {text!r}"


def _settings(value: Any) -> Mapping[str, Any] | str:
    return value.to_dict() if hasattr(value, "to_dict") else str(value)
