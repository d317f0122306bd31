"""Write a fine-tuned transformers model as a folder that transformers loads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from das_gym.adapt.card import TRUST_ARGUMENT, display_name, loading_example, model_card, source_front_matter
from das_gym.adapt.export.folder import ExportedFolder
from das_gym.adapt.report import results_table
from das_gym.adapt.shrinking.checks import processor_folder, weights_folder
from das_gym.adapt.shrinking.saving import describe_dtype, new_folder, round_parameters, save, saved_dtype
from das_gym.adapt.shrinking.verifying import (
    Probes,
    VerificationError,
    compare_logits,
    has_remote_code,
    replay_logits,
    run_in_subprocess,
)

from das_gym.data.images import NoiseImage
from das_gym.files import write_text
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.generation import LOGIT_TOLERANCES
from das_gym.models.transformers.inserted_adapters import exportable_subnet, has_adapters
from das_gym.models.transformers.loading import auto_class, source_dtype
from das_gym.models.transformers.model import VLM
from das_gym.problem.loading import AdaptedModel
from das_gym.problem.mask_space import skipped_names

QUESTIONS = ("what is this?", "how many are there, and of which colour is the largest?", "say it again")


def export_answering(
    subnet: AdaptedModel, out: Path, record: Mapping[str, Any], wanted_dtype: str = "auto"
) -> ExportedFolder:
    """Write a fine-tuned model of transformers; VerificationError if a fresh process loads another one from the folder."""
    vlm = subnet.backbone.vlp
    config = subnet.backbone.origin.config
    if not isinstance(vlm, VLM) or config is None:
        raise TypeError(f"export needs a transformers model here: got {type(vlm).__name__}, expected a VLM.")
    smaller = exportable_subnet(vlm)
    source = weights_folder(config)
    dtypes = source_dtype(source), vlm.model.dtype, wanted_dtype
    dtype = saved_dtype(*dtypes)
    task_processor: Any = subnet.task.processor
    prompts = []
    for number, question in enumerate(QUESTIONS):
        images = (NoiseImage(number, 96, 64),) if task_processor.takes_images else ()
        prompts.append(Prompt(question, images, f"answer {question}"))
    wanted = replay_logits(vlm, Probes(vlm, task_processor, prompts), None)
    smaller.model.to(dtype)  # adapters and a projector that were trained are float32
    round_parameters(smaller.model, dtype)
    adapted = has_adapters(smaller.model)
    given = Probes(smaller, task_processor, prompts).subprocess_input(adapted)
    with new_folder(out) as part:
        processor = processor_folder(config)
        left_out = save(smaller.model, part, source, processor, dtype, has_remote_code(vlm), wanted_dtype != "auto")
        found = run_in_subprocess(part, given)
        coarser = max((dtype, dtypes[1]), key=lambda each: LOGIT_TOLERANCES.get(each, 0.1))
        claim = "the logits of the folder differ from the fine-tuned model's"
        compare_logits(found["logits"], wanted, coarser, claim, "This type of model cannot be exported.")
        first, *others = found["generated"].values()
        if dtype == torch.float32 and any(rows != first[: len(rows)] for rows in others):
            raise VerificationError(f"the folder generates different text with and without a cache: {found['generated']}")
        exported = ExportedFolder(
            out,
            f"transformers.{auto_class(vlm.model.config).__name__}",
            sum(p.numel() for p in smaller.model.parameters()),
            max(float((a.float() - b.float()).abs().max()) for a, b in zip(found["logits"], wanted, strict=True)),
            dtype=describe_dtype(*dtypes, "dtype"),
            left_out=tuple(left_out),
        )
        write_text(part / "README.md", _card(source, exported, adapted, vlm, record))
    return exported


def _card(source: Path, exported: ExportedFolder, adapted: bool, vlm: VLM, record: Mapping[str, Any]) -> str:
    auto = exported.loads_with.rpartition(".")[2]
    name = display_name(source)
    remote = has_remote_code(vlm)
    removed = skipped_names((layer.name for layer in vlm.layers), vlm.check_mask(None))
    about = [f"Made from `{name}` by `python -m adapt export` of das_gym."]
    if "row" in record:
        about.append(f"It is the row {record['row']} of a comparison of methods.")
    if removed:
        about.append(f"Removed layers: {', '.join(removed)}.")
    if adapted:
        about.append("Adapters of DAS (arXiv 2309.01479) are inserted instead, and next to the remaining layers.")
    return model_card(
        source_front_matter(source, auto, ()),
        f"{name}, fine-tuned",
        [" ".join(about)],
        loading_example(auto, TRUST_ARGUMENT if adapted or remote else "", TRUST_ARGUMENT if remote else ""),
        results_table(record["models"]) if record.get("models") else None,
        f"Loaded by transformers alone, its logits differ by at most {exported.difference:.2g} from those of the fine-tuned "
        "model, on a few made-up prompts.",
    )
