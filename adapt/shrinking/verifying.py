"""Verify a saved folder: loaded by transformers alone in a fresh process, it must agree with the masked model."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from das_gym.adapt.shrinking import subprocess_main
from torch import Tensor

from das_gym.commands.runs import FailedResultError
from das_gym.models.base import HALVES
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.generation import (
    LOGIT_TOLERANCES,
    batch_key,
    can_pad_left,
    generate_batch,
    greedy_settings,
    pad_left,
    pad_token,
)
from das_gym.models.transformers.inputs import Encoding, image_token_ids
from das_gym.models.transformers.inserted_adapters import full_model_with_adapters, has_adapters
from das_gym.models.transformers.layer_removal import full_model_with_parameters
from das_gym.models.transformers.loading import auto_class, own_code, source_dtype
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stack import replace_forwards
from das_gym.names import first_line
from das_gym.tasks.base import Task

PROMPTS = 3
"""Number of prompts that are compared."""

NEW_TOKENS = 8
"""Number of tokens that are generated for each prompt."""

TIMEOUT_SECONDS = 3600

CACHED, UNCACHED, PADDED = "with a cache", "without a cache", "with left padding"


class VerificationError(FailedResultError):
    """The saved checkpoint's outputs differ from the masked model's."""


@dataclass(frozen=True)
class Verification:
    """The result of a successful verification: the largest relative difference of logits, and how text was generated."""

    prompts: int
    logits_difference: float
    ways: tuple[str, ...]


@dataclass(frozen=True)
class Probes:
    """The full model, and prompts with answers on which another one is compared with it."""

    vlm: VLM
    processor: Any
    prompts: Sequence[Prompt]

    @classmethod
    def from_examples(cls, vlm: VLM, task: Task, examples: Sequence[Any], count: int = PROMPTS) -> Self:
        """Return prompts of different lengths from some of the examples."""
        processor: Any = task.processor
        prompts: list[Any] = list(task.pairs(task.open_ended(examples[:32])))
        prompts.sort(key=lambda prompt: len(processor.encode(prompt).ids))
        places = np.linspace(0, len(prompts) - 1, count).round().astype(int)
        return cls(vlm, processor, [prompts[place] for place in dict.fromkeys(places.tolist())])

    @property
    def encodings(self) -> list[Encoding]:
        """The encoded prompts with pixels."""
        return [self.processor.encode(prompt, pixels=True) for prompt in self.prompts]

    @property
    def texts(self) -> list[str]:
        """Plain texts on which tokenizers are compared."""
        return [prompt.text for prompt in self.prompts]

    def subprocess_input(self, has_own_code: bool = False) -> dict[str, Any]:
        """Return the input of `subprocess_main`."""
        vlm = self.vlm
        pad = pad_token(vlm, self.processor)

        def cpu(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.cpu() for name, value in batch.items()}

        alone = [cpu(pad_left([e], pad, vlm)) for e in self.encodings]
        ways: dict[str, Any] = {CACHED: (alone, {"use_cache": True}), UNCACHED: (alone[:1], {"use_cache": False})}
        if can_pad_left(vlm, self.encodings, pad):
            padded = pad_left(_same_form(self.encodings), pad, vlm, extra=3)
            ways[PADDED] = ([cpu(padded)], {"use_cache": True})
        teacher_forced = [(cpu(pad_left([e._replace(answer=len(e.ids))], pad, vlm)), e.answer) for e in self.encodings]
        return {
            "texts": self.texts,
            "teacher_forced": teacher_forced,
            "ways": ways,
            "generation": endless_greedy_settings(vlm, self.processor),
            "dtype": str(vlm.model.dtype).removeprefix("torch."),
            "device": str(vlm.device),
            "device_map": "auto" if vlm.is_spread else None,
            "auto": auto_class(vlm.model.config).__name__,
            "threads": torch.get_num_threads(),
            "trust_remote_code": has_own_code or has_remote_code(vlm),
            "trust_processor": has_remote_code(vlm),
        }


def has_remote_code(vlm: VLM) -> bool:
    """Return True if the class of a model or of its processor came with its folder, and was trusted when it was loaded."""
    return any(type(part).__module__.startswith("transformers_modules.") for part in (vlm.model, vlm.source_processor))


def endless_greedy_settings(vlm: VLM, processor: Any) -> dict[str, Any]:
    """Return settings of greedy generation without an end token, so that there are tokens to compare."""
    return {**greedy_settings(vlm, processor, NEW_TOKENS), "eos_token_id": None}


def _same_form(encodings: Sequence[Encoding]) -> list[Encoding]:
    """Return the prompts that fit into one batch with the first."""
    return [e for e in encodings if batch_key(e) == batch_key(encodings[0])]


def check_generation(smaller: VLM, probes: Probes) -> None:
    """Raise, before training, if a pruned model generates differently with and without a cache."""
    encodings = probes.encodings[:1]
    settings = endless_greedy_settings(smaller, probes.processor)
    ways: dict[str, dict[str, Any]] = {UNCACHED: {"use_cache": False}, CACHED: {"use_cache": True}}
    if can_pad_left(probes.vlm, encodings, pad_token(smaller, probes.processor)):
        ways[PADDED] = {"use_cache": True, "extra": 3}

    def generated(vlm: VLM, way: str) -> list[int] | str:
        try:
            tokens: list[int] = generate_batch(vlm, probes.processor, encodings, settings, (), **ways[way])[0]
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            return f"nothing ({first_line(error)})"
        return tokens

    # Removing layers can break the positions that a cache counts, or a type's handling of padding.
    said = {way: generated(smaller, way) for way in ways}
    # in 16 bits, rounding decides between tokens of nearly equal probability
    exact = smaller.model.dtype not in HALVES
    differing = [way for way in ways if said[way] != said[UNCACHED] and (exact or isinstance(said[way], str))]
    if differing:  # if the full model's output differs as well, the removed layers are not the reason
        reference = generated(probes.vlm, UNCACHED)
        differing = [way for way in differing if generated(probes.vlm, way) == reference]
    if not differing and not isinstance(said[UNCACHED], str):
        return
    way = differing[0] if differing else UNCACHED
    raise VerificationError(
        f"{type(smaller.model).__name__} does not work without these layers: generate of transformers says {said[UNCACHED]} "
        f"{UNCACHED}, and {said[way]} {way}. Give a `mask` that keeps its first layers, and one or more of each kind."
    )


@torch.no_grad()
def check_logits(smaller: VLM, mask: np.ndarray, probes: Probes) -> None:
    """Raise, before training, if a pruned model computes something else than the masked model that the search scored.

    Whole layers are compared when a model is loaded. Of attentions and MLPs, it depends on the mask.
    """
    found = [smaller.run([e], with_head=True).logits[0, e.answer - 1 : -1].cpu() for e in probes.encodings]
    claim = (
        f"the logits of a {type(smaller.model).__name__} without these attentions and MLPs differ from the masked model's"
    )
    compare_logits(found, replay_logits(probes.vlm, probes, mask), smaller.model.dtype, claim, "Use `units=layers`.")


def compare_logits(found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: torch.dtype, claim: str, advice: str) -> float:
    """Return the largest difference of logits relative to the largest; VerificationError, with `claim`, above rounding."""
    tolerance = LOGIT_TOLERANCES.get(dtype, 0.1)
    difference = 0.0
    for logits, expected in zip(found, wanted, strict=True):
        if logits.shape != expected.shape or not bool((logits.isfinite() & expected.isfinite()).all()):
            difference = float("inf")
        else:
            # relative to the largest logit: small ones are sums of large terms, whose rounding they keep
            largest = float((logits - expected).abs().max()) / (float(expected.abs().max()) + 1e-6)
            difference = max(difference, largest)
    if difference > tolerance:
        raise VerificationError(f"{claim}: relative difference {difference:.2g}, allowed {tolerance:g}. {advice}")
    return difference


def run_in_subprocess(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Run a folder in a fresh process without das_gym, see `subprocess_main`; VerificationError if that fails."""
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / name for name in ("input.pt", "output.pt")]
        torch.save(dict(given), paths[0])
        # -P leaves the script's folder off sys.path, and keeps PYTHONPATH, where torch may lie
        command = [sys.executable, "-P", subprocess_main.__file__, str(folder), *map(str, paths)]
        reading, writing = os.pipe()  # if this process is killed, the system closes the pipe and the other process ends
        with os.fdopen(reading), os.fdopen(writing, "w"):
            done = subprocess.run(command, stdin=reading, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            errors = (line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception|Killed)\b", line))
            raise VerificationError(f"{folder} does not run in transformers alone: {next(errors, lines[-1])}")
        return torch.load(paths[1], weights_only=True)


@contextmanager
def off_gpu(vlms: Sequence[VLM]) -> Iterator[None]:
    """Move models from their GPU to main memory within the block, so that another process has the GPU for itself.

    Models that `device_map` spread over several GPUs stay, and so does what is on the CPU anyway.
    """
    device = vlms[0].device
    if device.type == "cpu" or vlms[0].is_spread:
        yield
        return
    for vlm in vlms:
        vlm.to("cpu")
    torch.cuda.empty_cache()  # what torch keeps for its next tensors is not free for others
    try:
        yield
    finally:
        for vlm in vlms:
            vlm.to(device)


def verify(
    folder: Path, smaller: VLM, mask: np.ndarray, probes: Probes, dtype: torch.dtype, others: Sequence[VLM] = ()
) -> Verification:
    """Compare a saved folder, in a fresh process, with the full model masked and with the smaller model's parameters.

    Logits are compared with the replay of layers that scored the search. Generated tokens must be the most likely ones in a
    plain forward in which the skipped layers are replaced by the identity, or by their adapters. The folder's weights must
    have the type `dtype`. These models and `others` leave their GPU while the process runs.
    """
    given = probes.subprocess_input(own_code(smaller.model) is not None)
    with off_gpu([probes.vlm, smaller, *others]):
        found = run_in_subprocess(folder, given)
    if source_dtype(folder) != dtype:
        raise VerificationError(f"the weights in {folder} are {source_dtype(folder)}, not {dtype}")
    # The subprocess gets token ids, so wrong files of the tokenizer would not show in its logits.
    if found["tokens"] != [probes.processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in probes.texts]:
        raise VerificationError(f"the tokenizer in {folder} differs from the source's")
    merge = full_model_with_adapters if has_adapters(smaller.model) else full_model_with_parameters
    # The full model with what recovery changed, so that both sides differ in the removal alone.
    masked = merge(probes.vlm, smaller, mask)
    computed = probes.vlm.model.dtype
    wanted = replay_logits(masked, probes, mask)
    claim = f"the logits of {folder} differ from the masked model's"
    difference = compare_logits(found["logits"], wanted, computed, claim, "This type of model cannot be shrunk.")
    tolerance = LOGIT_TOLERANCES.get(computed, 0.1)
    encodings = {CACHED: probes.encodings, UNCACHED: probes.encodings[:1], PADDED: _same_form(probes.encodings)}
    for way, rows in found["generated"].items():
        for encoding, tokens in zip(encodings[way], rows, strict=True):
            _check_tokens(masked, mask, encoding, tokens, tolerance, f"{folder}, {way},")
    return Verification(len(wanted), difference, tuple(found["generated"]))


@torch.no_grad()
def replay_logits(vlm: VLM, probes: Probes, mask: np.ndarray | None) -> list[Tensor]:
    """Return the (tokens, vocabulary) logits of each answer by the replay of layers that scores masks."""
    state = vlm.gather_uncached(probes.processor, probes.prompts)
    logits = vlm.language_head()(vlm.forward_encoded(state, mask)).cpu()
    return list(logits.split([len(e.ids) - e.answer for e in probes.encodings]))


@torch.no_grad()
def _check_tokens(vlm: VLM, mask: np.ndarray, encoding: Encoding, tokens: list[int], tolerance: float, where: str) -> None:
    """Reject a generated token that is not the masked model's most likely one, except for rounding."""
    start = encoding.answer
    ids = torch.cat((encoding.ids[:start], torch.tensor(tokens)))
    types = {}
    for name, value in encoding.types.items():
        repeats = [len(tokens)] + [1] * (value.ndim - 1)
        types[name] = torch.cat((value[:start], value[-1:].repeat(*repeats)))
    with replace_forwards(vlm.skip_forwards(mask)):
        logits = vlm.run([encoding._replace(ids=ids, types=types)], with_head=True).logits[0, start - 1 : -1].cpu().float()
    # Of tokens that are equally likely but for rounding, either may be generated.
    allowed = tolerance * (float(logits.abs().max()) + 1e-6)
    logits[:, image_token_ids(vlm.model)] = -torch.inf
    lacking = logits.amax(-1) - logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    wrong = ~(lacking <= allowed)  # NaN, too
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise VerificationError(
            f"{where} generates {tokens}, whose token {place} is not the masked model's. This type of model cannot be "
            "shrunk."
        )
