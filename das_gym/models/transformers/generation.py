"""Answers that a model generates, by transformers' own `generate`."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from das_gym.commands.progress import progress
from das_gym.models.transformers.inputs import Encoding, PromptProcessor, image_token_ids, make_batch
from das_gym.models.transformers.model import VLM

SPARE_TOKENS = 8
"""How many tokens longer than the longest reference an answer may be."""

PROBED = 64
PROBES = 4
"""Prompts among which some with different images are looked for, and how many of these are tried padded at the left."""

LOGIT_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Allowed difference of two runs, as a share of the largest logit. In float64, too, some routers compute in float32."""


def generate_answers(
    subnet: VLM, processor: PromptProcessor, prompts: Sequence[Any], title: str, max_new_tokens: int
) -> list[str]:
    """Generate answers of a fine-tuned subnet, as its exported folder would; see `ModelEntry.generate`."""
    from das_gym.models.transformers.inserted_adapters import exportable_subnet

    return generate(exportable_subnet(subnet), processor, prompts, title, max_new_tokens=max_new_tokens)


def generate(
    vlm: VLM,
    processor: PromptProcessor,
    prompts: Sequence[Any],
    title: str,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
) -> list[str]:
    """Generate the model's answer to each prompt, greedily; warn if `max_new_tokens` cuts answers off.

    Nothing in the model is skipped: its layers are removed or all there. Up to `batch_size` prompts are padded at the left,
    if the model can be. `max_new_tokens` None is the length of the longest reference, and a few more.
    """
    limit = max_new_tokens
    if limit is None:
        limit = SPARE_TOKENS + max(len(e.ids) - e.answer for e in map(processor.encode, prompts))
    found = generate_tokens(vlm, processor, prompts, title, batch_size, limit)
    cut_off = sum(len(tokens) == max_new_tokens for tokens in found)
    if cut_off:
        setting = f"`max_new_tokens={max_new_tokens}`"
        warnings.warn(f"{cut_off} of {len(found)} answers are cut off ({setting}).", stacklevel=2)
    return [processor.decode(tokens) for tokens in found]


def generate_tokens(
    vlm: VLM,
    processor: PromptProcessor,
    prompts: Sequence[Any],
    title: str,
    batch_size: int,
    limit: int,
    known: Mapping[int, list[int]] | None = None,
    on_found: Callable[[Mapping[int, list[int]]], Any] | None = None,
) -> list[list[int]]:
    """Generate the tokens of each answer up to its end; an answer of `limit` tokens is cut off. See `generate`.

    `on_found` is called now and then with all answers so far, by row; `known` are those of an interrupted call with the same
    arguments.
    """
    settings = greedy_settings(vlm, processor, limit)
    by_image = {prompt.image_key: prompt for prompt in prompts[:PROBED]}
    probed = dict.fromkeys([*by_image.values(), *prompts[:2]])  # each once
    probe = [processor.encode(prompt, pixels=True) for prompt in list(probed)[:PROBES]]
    size = batch_size
    if batch_size > 1 and not can_pad_left(vlm, probe, pad_token(vlm, processor)):
        size = 1
        warnings.warn(
            f"{type(vlm.model).__name__} computes other logits for left-padded prompts: answers are generated one by one.",
            stacklevel=3,
        )
    found = dict(known or {})
    chunk = size * 4  # prompts whose pixels are in memory
    with progress(len(prompts), title, unit="answer", initial=len(found)) as bar:
        for start in range(0, len(prompts), chunk):
            if start in found:
                continue
            here = [processor.encode(prompt, pixels=True) for prompt in prompts[start : start + chunk]]
            for rows in group_batches(here, size):
                answers = generate_batch(vlm, processor, [here[row] for row in rows], settings)
                found |= {start + row: tokens for row, tokens in zip(rows, answers, strict=True)}
                bar.update(len(rows))
            if on_found is not None:
                on_found(found)
    return [found[number] for number in range(len(prompts))]


def generate_batch(
    vlm: VLM,
    processor: PromptProcessor,
    encodings: Sequence[Encoding],
    settings: Mapping[str, Any],
    ends: Sequence[int] | None = None,
    extra: int = 0,
    **more: Any,
) -> list[list[int]]:
    """Generate answers to prompts of one form in one batch: their tokens up to the end.

    `settings` are those of `greedy_settings`, `ends` the tokens that end an answer (None = the processor's), `extra` is
    padding before the longest prompt, and `more` is for transformers' `generate`.
    """
    batch = pad_left(encodings, pad_token(vlm, processor), vlm, extra)
    with greedy_decoding(vlm.model, settings), torch.no_grad():
        tokens = vlm.model.generate(**batch, **more)[:, batch["input_ids"].shape[1] :]
    return [cut_at_end(row, processor.ends if ends is None else ends) for row in tokens.tolist()]


def cut_at_end(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens before the first that ends an answer."""
    place = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:place])


def batch_key(encoding: Encoding) -> tuple[Any, ...]:
    """Return a key that is equal for prompts that can share a batch: number and shapes of their images."""
    parts = encoding.pixels | encoding.sizes
    return tuple((name, tuple(value.shape[1:])) for name, value in sorted(parts.items()))


def group_batches(encodings: Sequence[Encoding], size: int) -> Iterator[list[int]]:
    """Yield indices of prompts for one batch: of one form, of similar length, at most `size`."""
    forms = [batch_key(encoding) for encoding in encodings]
    order = sorted(range(len(encodings)), key=lambda row: (str(forms[row]), len(encodings[row].ids), row))
    for _, alike in itertools.groupby(order, key=forms.__getitem__):
        rows = list(alike)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def pad_left(encodings: Sequence[Encoding], pad: int, vlm: VLM, extra: int = 0) -> dict[str, Tensor]:
    """Make a left-padded (prompts, tokens) batch with pixels for transformers' `generate`; `extra` pads the longest, too."""
    asked = [e._replace(ids=e.ids[: e.answer], types={n: v[: e.answer] for n, v in e.types.items()}) for e in encodings]
    batch = make_batch(asked, pad, padding_side="left")
    for name in ("input_ids", "attention_mask", *encodings[0].types):
        before = (0, 0) * (batch[name].dim() - 2) + (extra, 0)
        batch[name] = F.pad(batch[name], before, value=pad if name == "input_ids" else 0)
    return vlm.to_device(batch | {name: torch.cat([e.pixels[name] for e in encodings]) for name in encodings[0].pixels})


def pad_token(vlm: VLM, processor: PromptProcessor) -> int:
    """Return the padding token's id; if there is none, the end token's."""
    ids = (processor.tokenizer.pad_token_id, vlm.text_config.pad_token_id, processor.ends[0])
    return next(int(token) for token in ids if token is not None)


@contextmanager
def greedy_decoding(model: Any, settings: Mapping[str, Any]) -> Iterator[None]:
    """Replace the generation config of a model and its parts within the block: nothing is sampled, forbidden or forced."""
    from transformers import GenerationConfig, GenerationMixin

    # Kosmos-2 calls `generate` of its text model, which reads its own configuration.
    before = {part: part.generation_config for part in model.modules() if isinstance(part, GenerationMixin)}
    for part in before:
        part.generation_config = GenerationConfig(**settings)
    try:
        yield
    finally:
        for part, own in before.items():
            part.generation_config = own


def greedy_settings(vlm: VLM, processor: PromptProcessor, max_new_tokens: int, least: int | None = None) -> dict[str, Any]:
    """Return settings of `GenerationConfig` for answers of `least` to `max_new_tokens` tokens."""
    suppressed = image_token_ids(vlm.model)
    return {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": list(processor.ends),
        "pad_token_id": pad_token(vlm, processor),
        **({"suppress_tokens": suppressed} if suppressed else {}),
        **({"min_new_tokens": least} if least is not None else {}),
    }


@torch.no_grad()
def can_pad_left(vlm: VLM, encodings: Sequence[Encoding], pad: int) -> bool:
    """Return True if left-padded prompts in a batch get the same next-token logits as each prompt alone.

    The encodings are a few with their pixels; those of one form should have different images. `pad` is the id of padding.
    """
    tolerance = LOGIT_TOLERANCES.get(vlm.model.dtype, 0.1)

    def logits(rows: Sequence[int], extra: int) -> Tensor:
        batch = pad_left([encodings[row] for row in rows], pad, vlm, extra)
        return vlm.model.generate(**batch, output_logits=True, return_dict_in_generate=True).logits[0]

    # Some types place padding wrongly: rotary positions that count it, or convolutions that read it.
    with greedy_decoding(vlm.model, {"do_sample": False, "max_new_tokens": 1, "pad_token_id": pad}):
        for rows in group_batches(encodings, len(encodings)):
            alone = torch.cat([logits([row], 0) for row in rows])
            together = logits(rows, 5)
            difference = float((alone - together).abs().max())
            largest = float(alone.abs().max())
            if not difference <= tolerance * (largest + 1e-6):  # NaN is no less wrong than a large difference
                return False
    return True
