"""What fine-tuning made of a model of transformers, as a folder that transformers loads, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from das_gym.adapt.export.card import result
from das_gym.adapt.export.folder import Exported
from das_gym.adapt.export.probe import Noise
from das_gym.adapt.shrink.card import TRUST, called, front_matter, loading
from das_gym.adapt.shrink.checks import source_of
from das_gym.adapt.shrink.saving import new_folder, rounded, save, saved_dtype
from das_gym.adapt.shrink.verifying import (
    TOLERANCES,
    NotTheSameError,
    Questions,
    ask_fresh,
    is_remote,
    logits_apart,
    replayed,
)

from das_gym.files import write_text
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.inserted_adapters import export_form, has_adapters
from das_gym.models.transformers.loading import auto_class
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.weights import source_dtype
from das_gym.problem.loading import AdaptedModel
from das_gym.problem.mask_space import skipped_names


@dataclass(frozen=True)
class MadeUp:
    """Prompts in a task's place: they are their own pairs."""

    processor: Any

    def pairs(self, examples: Sequence[Prompt]) -> list[Prompt]:
        """Themselves."""
        return list(examples)


def write(subnet: AdaptedModel, out: Path, record: Mapping[str, Any]) -> Exported:
    """Write a fine-tuned model, and compare what transformers alone loads from there, in a fresh process, with it.

    Args:
        subnet: As `load_subnet` gives it, of a model that answers in words; it is rounded to what is saved.
        out: A folder that does not exist.
        record: The content of the run's record, or what `compare` says of a row, for the folder's README.md.

    Raises:
        TypeError: a model of another kind.
        ValueError: training left something in it that no folder says; or the folder says something else.
    """
    vlm, config = subnet.backbone.vlp, subnet.backbone.config
    if not isinstance(vlm, VLM) or config is None:
        raise TypeError(f"a {type(vlm).__name__} cannot be exported: it is no model of transformers")
    smaller, source = export_form(vlm), source_of(config)
    dtype = saved_dtype(source_dtype(source), vlm.model.dtype)
    prompts = made_up(subnet.task.processor)
    wanted = replayed(vlm, Questions(vlm, MadeUp(subnet.task.processor), prompts), None)  # type: ignore[arg-type]
    smaller.model.to(dtype)  # adapters and a projector that trained are of 32 bits
    rounded(smaller.model, dtype)
    asked = Questions(smaller, MadeUp(subnet.task.processor), prompts)  # type: ignore[arg-type]
    with new_folder(out) as part:
        processor = Path(config.tokenizer) if config.tokenizer else source
        save(smaller.model, part, source, processor, dtype, is_remote(vlm))
        found = ask_fresh(part, asked.given(has_adapters(smaller.model)))
        pairs = list(zip(found["logits"], wanted, strict=True))
        apart, allowed = max(logits_apart(one, other) for one, other in pairs), TOLERANCES.get(dtype, 0.1)
        if apart > allowed:
            raise NotTheSameError(
                f"the logits of the folder are {apart:.2g} of their largest away from those of the fine-tuned model "
                f"(allowed: {allowed:g}): this type of model cannot be exported"
            )
        first, *others = found["said"].values()
        if dtype == torch.float32 and any(rows != first[: len(rows)] for rows in others):
            raise NotTheSameError(f"the folder generates otherwise with a cache than without: {found['said']}")
        count = sum(p.numel() for p in smaller.model.parameters())
        difference = max(float((one.float() - other.float()).abs().max()) for one, other in pairs)
        exported = Exported(out, f"transformers.{auto_class(vlm.model.config).__name__}", count, difference)
        write_text(part / "README.md", card(source, exported, has_adapters(smaller.model), vlm, record))
    return exported


def made_up(processor: Any) -> list[Prompt]:
    """A few prompts of different lengths, with pictures where the model sees."""
    words = ("what is this?", "how many are there, and of which colour is the largest?", "say it again")
    seen = [(Noise(number, 96, 64),) if processor.sees else () for number in range(len(words))]
    return [Prompt(word, pictures, f"answer {word}") for word, pictures in zip(words, seen, strict=True)]


def card(source: Path, exported: Exported, adapted: bool, vlm: VLM, record: Mapping[str, Any]) -> str:
    """The text of the folder's README.md."""
    auto = exported.loads_with.rpartition(".")[2]
    gone = skipped_names((layer.name for layer in vlm.layers), vlm.check_mask(None))
    how = [f"It is the row {record['row']} of a comparison of methods."] if "row" in record else []
    how += [f"Layers that are gone: {', '.join(gone)}."] if gone else []
    how += ["Adapters of DAS (arXiv 2309.01479) stand in their place, and beside what is left."] if adapted else []
    return "\n".join(
        [
            *front_matter(source, auto, ()),
            f"# {called(source)}, fine-tuned",
            "",
            " ".join([f"Made from `{called(source)}` by `python -m adapt export` of das_gym.", *how]),
            "",
            *loading(auto, TRUST if adapted or is_remote(vlm) else "", TRUST if is_remote(vlm) else ""),
            "",
            result(record),
            "",
            f"Loaded by transformers alone, its logits differ by at most {exported.difference:.1e} from those of the model "
            "that was fine-tuned, on a few made-up prompts.",
            "",
        ]
    )
