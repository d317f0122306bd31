"""Is the saved folder the model that was scored? Loaded in a fresh process by transformers alone, it has to say the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.shrink import fresh
from torch import Tensor

from das_gym.models.transformers.generation import (
    PADDING_TOLERANCE,
    generate_batch,
    greedy_settings,
    input_form,
    left_padded,
    pad_token,
    pads_left,
)
from das_gym.models.transformers.inputs import Encoding, image_tokens_of
from das_gym.models.transformers.inserted_adapters import full_with_adapters_of, has_adapters
from das_gym.models.transformers.layer_removal import full_with_parameters_of
from das_gym.models.transformers.loading import auto_class
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stack import replace_forwards, skip_forward
from das_gym.models.transformers.weights import source_dtype
from das_gym.tasks.base import Task

PROMPTS = 3
"""So many prompts are compared."""

NEW_TOKENS = 8
"""So many tokens are generated to each."""

TOLERANCES = PADDING_TOLERANCE
"""How far logits may be apart, as a share of their largest; the next token may be another one among equals."""

TIMEOUT = 3600
"""Seconds that the fresh process may take."""


@dataclass(frozen=True)
class Verified:
    """What was compared, and found the same.

    Attributes:
        prompts: How many.
        logits_apart: Largest difference of logits, as a share of the largest.
        ways: How text was generated.
        peak_bytes: Memory that the model took at most in the fresh process, beyond that of the libraries.
    """

    prompts: int
    logits_apart: float
    ways: tuple[str, ...]
    peak_bytes: int


class NotTheSameError(ValueError):
    """The saved folder says something else than the masked model."""


@dataclass(frozen=True)
class Questions:
    """Prompts to compare two models on.

    Attributes:
        vlm: The whole model.
        task: Answered in words.
        examples: A few, each of one pair.
    """

    vlm: VLM
    task: Task
    examples: Sequence[Any]

    @property
    def encodings(self) -> list[Encoding]:
        """Theirs, with pixels."""
        processor: Any = self.task.processor
        return [processor.encode(prompt, pixels=True) for prompt in self.task.pairs(self.examples)]

    def given(self, brings_code: bool = False) -> dict[str, Any]:
        """What the fresh process is given.

        Args:
            brings_code: Whether the folder has code of ours.
        """
        vlm, encodings = self.vlm, self.encodings
        processor: Any = self.task.processor
        pad = pad_token(vlm, processor)
        alone = [left_padded([e], pad, vlm) for e in encodings]
        asked: dict[str, Any] = {
            "with a cache": (alone, {"use_cache": True}),
            "without a cache": (alone, {"use_cache": False}),
        }
        if pads_left(vlm, encodings, pad):
            same = [e for e in encodings if input_form(e) == input_form(encodings[0])]
            asked["with left padding"] = ([left_padded(same, pad, vlm, extra=3)], {"use_cache": True})
        whole = [(left_padded([e._replace(answer=len(e.ids))], pad, vlm), e.answer) for e in encodings]
        prompts: list[Any] = list(self.task.pairs(self.examples))
        cpu = lambda batch: {name: value.cpu() for name, value in batch.items()}  # noqa: E731
        return {
            "whole": [(cpu(batch), first) for batch, first in whole],
            "asked": {name: ([cpu(b) for b in batches], more) for name, (batches, more) in asked.items()},
            "settings": endless_settings(vlm, processor),
            "texts": [f"{prompt.question} {prompt.answer}" for prompt in prompts],
            "dtype": str(vlm.model.dtype).removeprefix("torch."),
            "device": str(vlm.device),
            "auto": auto_class(vlm.model.config).__name__,
            "threads": torch.get_num_threads(),
            "trust_remote_code": brings_code or is_remote(vlm),
            "trust_processor": is_remote(vlm),
        }


def is_remote(vlm: VLM) -> bool:
    """Whether the class of a model or of its processor came with its folder: it was trusted when it was loaded."""
    return any(type(part).__module__.startswith("transformers_modules.") for part in (vlm.model, vlm.source_processor))


def endless_settings(vlm: VLM, processor: Any) -> dict[str, Any]:
    """Those of greedy generation that no token ends, so that there is something to compare."""
    return {**greedy_settings(vlm, processor, NEW_TOKENS), "eos_token_id": None}


def questions(vlm: VLM, task: Task, examples: Sequence[Any], count: int = PROMPTS) -> Questions:
    """Some of the examples, of different lengths where there are such."""
    processor: Any = task.processor
    pool = task.open_ended(examples[:32])
    lengths = [len(processor.encode(prompt).ids) for prompt in task.pairs(pool)]
    order = sorted(range(len(pool)), key=lambda row: (lengths[row], row))
    chosen = dict.fromkeys(order[place] for place in np.linspace(0, len(order) - 1, count).round().astype(int))
    return Questions(vlm, task, [pool[row] for row in chosen])


def check_generates(smaller: VLM, asked: Questions) -> None:
    """Refuse, before anything is trained, a model that generates otherwise with a cache than without one.

    Args:
        smaller: The whole model without some of its layers.
        asked: A prompt is enough.

    Raises:
        NotTheSameError: the reason.
    """
    processor: Any = asked.task.processor
    encodings, settings = asked.encodings[:1], endless_settings(smaller, processor)
    ways: dict[str, dict[str, Any]] = {"without a cache": {"use_cache": False}, "with a cache": {"use_cache": True}}
    if pads_left(asked.vlm, encodings, pad_token(smaller, processor)):
        ways["with left padding"] = {"use_cache": True, "extra": 3}
    said = {way: _said(smaller, processor, encodings, settings, more) for way, more in ways.items()}
    first, *others = said
    exact = smaller.model.dtype not in (torch.float16, torch.bfloat16)  # in these equals may be taken for each other
    differing = [way for way in others if said[way] != said[first] and (exact or isinstance(said[way], str))]
    whole = {way: _said(asked.vlm, processor, encodings, settings, ways[way]) for way in (first, *differing) if differing}
    other = next((way for way in differing if whole[way] == whole[first]), None)  # else it is not these layers' doing
    if other is None and not isinstance(said[first], str):
        return
    why = f"generate of transformers says {said[first]} {first}, and {said[other or first]} {other or first}"
    raise NotTheSameError(
        f"{type(smaller.model).__name__} cannot do without these layers: {why}; give a mask that keeps its first layers, "
        "and one or more of each kind"
    )


def _said(
    vlm: VLM, processor: Any, encodings: Sequence[Encoding], settings: Mapping[str, Any], more: Mapping[str, Any]
) -> Any:
    """What a model says to the first prompt, or in words why it says nothing."""
    try:
        return generate_batch(vlm, processor, encodings, settings, (), **more)[0]
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        return f"nothing ({next(iter(str(error).splitlines()), type(error).__name__)})"


def ask_fresh(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder says in a process of its own, without das_gym; see `fresh`.

    Raises:
        NotTheSameError: it does not load or run there.
    """
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / name for name in ("given.pt", "wanted.pt")]
        torch.save(dict(given), paths[0])
        command = [sys.executable, "-P", fresh.__file__, str(folder), *map(str, paths)]  # torch may lie on PYTHONPATH
        reading, writing = os.pipe()
        with os.fdopen(reading), os.fdopen(writing, "w"):  # closed where this process is killed: the other ends, too
            done = subprocess.run(command, stdin=reading, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            told = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception|Killed)\b", line)), lines[-1])
            raise NotTheSameError(f"{folder} does not run in transformers alone: {told}")
        found: dict[str, Any] = torch.load(paths[1], weights_only=True)
        return found


def verify(folder: Path, smaller: VLM, mask: np.ndarray, asked: Questions, dtype: torch.dtype) -> Verified:
    """Compare a saved folder, in a fresh process, with the whole model masked, its kept layers as the smaller one has them.

    Logits are compared with the masks' replay that scored the search; generated text with what is likeliest under a plain
    forward in which the skipped layers pass their input on, or give what adapters in their place make of it.

    Args:
        folder: As `saving.save` wrote it.
        smaller: The model in memory.
        mask: (n_layers,) bool, what was deleted.
        asked: With the whole model.
        dtype: The type that the folder's weights should have.

    Raises:
        NotTheSameError: names what differs.
    """
    found = ask_fresh(folder, asked.given(has_adapters(smaller.model)))
    if source_dtype(folder) != dtype:
        raise NotTheSameError(f"the weights in {folder} are {source_dtype(folder)}, not {dtype}")
    processor: Any = asked.task.processor
    prompts: list[Any] = list(asked.task.pairs(asked.examples))
    texts = [f"{prompt.question} {prompt.answer}" for prompt in prompts]
    if found["tokens"] != [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]:
        raise NotTheSameError(f"the tokenizer in {folder} makes other tokens than the source's")
    merge = full_with_adapters_of if has_adapters(smaller.model) else full_with_parameters_of
    masked = merge(asked.vlm, smaller, mask)
    tolerance = TOLERANCES.get(asked.vlm.model.dtype, 0.1)
    wanted = replayed(masked, asked, mask)
    apart = max(logits_apart(one, other) for one, other in zip(found["logits"], wanted, strict=True))
    if apart > tolerance:
        raise NotTheSameError(
            f"the logits of {folder} are {apart:.2g} of their largest away from those of the masked model (allowed: "
            f"{tolerance:g}): this type of model cannot be shrunk"
        )
    for way, rows in found["said"].items():
        same = asked.encodings if len(rows) == len(asked.encodings) else _of_first_form(asked.encodings)
        for encoding, tokens in zip(same, rows, strict=True):
            _check_said(masked, mask, encoding, tokens, tolerance, f"{folder}, {way},")
    return Verified(len(wanted), apart, tuple(found["said"]), found["peak_bytes"])


def _of_first_form(encodings: Sequence[Encoding]) -> list[Encoding]:
    return [e for e in encodings if input_form(e) == input_form(encodings[0])]


def logits_apart(given: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a share of the largest wanted; infinite where shapes differ or a number is not finite."""
    if given.shape != wanted.shape or not bool(torch.isfinite(given).all()):
        return float("inf")
    return float((given - wanted).abs().max()) / (float(wanted.abs().max()) + 1e-6)


@torch.no_grad()
def replayed(vlm: VLM, asked: Questions, mask: np.ndarray | None) -> list[Tensor]:
    """(tokens, vocabulary) of each answer, by the replay of layers that scores masks."""
    processor: Any = asked.task.processor
    prompts: list[Any] = list(asked.task.pairs(asked.examples))
    state = vlm.gather(
        processor, prompts, lambda _, items: {key: vlm.encode_images(processor, one) for key, one in items.items()}
    )
    logits = vlm.own_head()(vlm.forward_encoded(state, mask)).cpu()
    return list(logits.split([len(e.ids) - e.answer for e in asked.encodings]))


@torch.no_grad()
def _check_said(vlm: VLM, mask: np.ndarray, encoding: Encoding, tokens: list[int], tolerance: float, where: str) -> None:
    """Refuse a generated token that the masked model does not find the likeliest, but for rounding."""
    ids = torch.cat((encoding.ids[: encoding.answer], torch.tensor(tokens)))
    types = {
        n: torch.cat((v[: encoding.answer], v[-1:].repeat(len(tokens), *(1 for _ in v.shape[1:]))))
        for n, v in encoding.types.items()
    }
    gone = {vlm.stack_of(n).layers[vlm.places[n]]: vlm.skippable(n).chosen(True) for n in np.flatnonzero(mask).tolist()}
    with replace_forwards({layer: skip_forward(layer, adapter) for layer, adapter in gone.items()}):
        logits = (
            vlm.run([encoding._replace(ids=ids, types=types)], with_head=True)
            .logits[0, encoding.answer - 1 : -1]
            .cpu()
            .float()
        )
    allowed = tolerance * (float(logits.abs().max()) + 1e-6)
    logits[:, image_tokens_of(vlm.model)] = -torch.inf
    lacking = logits.amax(-1) - logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    if float(lacking.max()) > allowed:
        place = int((lacking > allowed).nonzero()[0])
        raise NotTheSameError(
            f"{where} generates {tokens}, of which token {place} is not what the masked model says: this type of model "
            "cannot be shrunk"
        )
