"""A fine-tuned subnet of METER or ViLT as a folder in transformers' conventions."""

import copy
import json
import os
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from das_gym.adapt.card import TRUST_ARGUMENT, front_matter, model_card
from das_gym.adapt.export.graph import FILE as ONNX_FILE
from das_gym.adapt.export.graph import probe_batch, subnet_logits, transformers_batch, write_onnx
from das_gym.adapt.finished_runs import require_onnx
from das_gym.adapt.report import results_table
from das_gym.adapt.shrinking.saving import new_folder

from das_gym.commands.progress import quiet_loading
from das_gym.commands.runs import library_versions
from das_gym.commands.trust import imported_plugins
from das_gym.files import METADATA_KEY, check_new_folder, write_text
from das_gym.models.checkpoints import families, find_family
from das_gym.models.formats import ExportedModel, copy_code, export_head, layer_kinds, remove_code_settings
from das_gym.models.tensor_files import CHECKSUM, checksum, write_safetensors
from das_gym.problem.loading import AdaptedModel
from das_gym.problem.mask_space import skipped_names

TOLERANCE = 1e-5
"""Largest difference of a logit, relative to the largest, between the subnet and the folder."""

DAS_DESCRIPTION = (
    "Dynamic Architecture Skipping (arXiv 2309.01479) freezes a vision-language model, removes the layers that a task does "
    "not need, replaces them by bottleneck adapters, adds parallel adapters to the sub-layers of the others, and trains "
    "the adapters and the head."
)


@dataclass(frozen=True)
class ExportedFolder:
    """An exported folder.

    Attributes:
        loads_with: The class of transformers, or the file of code, that loads it.
        parameters: Number of parameters.
        difference, onnx_difference: Largest difference of a logit from the subnet's.
        dtype: Which dtype was saved and why; empty for models that have no choice.
        left_out: Files of the model's folder that were not copied: see `models.source_files.source_files`.
    """

    folder: Path
    loads_with: str
    parameters: int
    difference: float
    onnx_difference: float | None = None
    dtype: str = ""
    left_out: tuple[Path, ...] = ()


def export(
    subnet: AdaptedModel, out: str | os.PathLike[str], onnx: bool = False, record: Mapping[str, Any] | None = None
) -> ExportedFolder:
    """Write a subnet with its head: config, weights, tokenizer, image processor, code, model card.

    The folder, which must be new, is loaded again and compared with the subnet before it appears; a failed export leaves
    nothing. With `onnx`, `model.onnx` is written as well. `record` is the content of the run's record, for the model card.
    """
    place = check_new_folder(out)
    if onnx:
        require_onnx()
    vlp = subnet.backbone.vlp
    family = find_family(vlp)
    if family is None:
        known = " and ".join(each.model.__name__ for each in families().values())
        raise ValueError(f"export supports {known}: got {type(vlp).__name__}. Use `das_gym.adapt.load_subnet` on the run.")
    head = export_head(subnet.head, vlp.feature_size)
    model = family.export(vlp, head)
    with new_folder(place) as part:
        _write_files(part, subnet, model, head.num_labels, head.num_images)
        file = model.model.partition(":")[0].rpartition(".")[2]
        exported = ExportedFolder(
            place,
            f"{file}.py" if model.code else model.model.replace(":", "."),
            sum(tensor.numel() for tensor in model.tensors.values()),
            _compare(subnet, model, head.num_images, part),
            write_onnx(subnet, head.num_images, part / ONNX_FILE) if onnx else None,
        )
        write_text(part / "README.md", _subnet_card(subnet, model, exported, record or {}, head.num_images))
    return exported


def _write_files(folder: Path, subnet: AdaptedModel, model: ExportedModel, num_labels: int, num_images: int) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.tensors.items()}
    processor = subnet.task.processor
    mask = subnet.backbone.vlp.check_mask(None)
    labels: Sequence[str] = subnet.task.logit_names
    if len(labels) != num_labels:
        labels = [f"LABEL_{i}" for i in range(num_labels)]
    versions = library_versions()
    config = {
        **model.config,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        "transformers_version": versions["transformers"],
        METADATA_KEY: {  # read by `load_exported`
            "task": subnet.task.name,
            "labels": list(subnet.task.labels),
            "mask": mask.astype(int).tolist(),
            "skipped_layers": skipped_names((layer.name for layer in subnet.backbone.vlp.layers), mask),
            "image_size": processor.image_size,
            "max_text_length": processor.max_text_length,
            "num_images": num_images,
            "plugins": list(imported_plugins()),
            "version": versions["das_gym"],
            CHECKSUM: checksum(tensors, {}),
        },
    }
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.model_max_length = processor.max_text_length
    for name in ("is_local", "local_files_only", "trust_remote_code"):  # how it was loaded here
        tokenizer.init_kwargs.pop(name, None)
    if hasattr(tokenizer, "backend_tokenizer"):  # it would save the truncation and padding of its last call
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    remove_code_settings(folder)
    images = json.dumps(model.image_processor, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(images, encoding="utf-8")  # may name our own code
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")  # names our own code
    copy_code(folder, *model.code)


@torch.no_grad()
def _compare(subnet: AdaptedModel, model: ExportedModel, num_images: int, folder: Path) -> float:
    """Return the largest difference of a logit between the subnet and the loaded folder."""
    with quiet_loading():
        loaded, info = pkgutil.resolve_name(model.model).from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    version = f"transformers {library_versions()['transformers']} is installed, das_gym supports 5.20 and later"
    # transformers only warns of missing weights, which it fills with noise.
    odd = sorted(map(str, (*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"])))
    if odd:
        raise ValueError(f"the exported folder does not load completely ({', '.join(odd[:5])}); {version}.")
    batch = probe_batch(subnet, num_images)
    wanted = subnet_logits(subnet, batch)
    found = loaded.to(wanted.device, wanted.dtype).eval()(**transformers_batch(batch, num_images)).logits
    difference = float((found.reshape(-1) - wanted).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise ValueError(f"the exported folder's logits differ from the subnet's by {difference:.1e}; {version}.")
    return difference


def _subnet_card(
    subnet: AdaptedModel, model: ExportedModel, exported: ExportedFolder, record: Mapping[str, Any], num_images: int
) -> str:
    vlp = subnet.backbone.vlp
    kinds = layer_kinds(vlp)
    mask = vlp.check_mask(None).astype(int).tolist()
    title = f"{type(vlp).__name__} without {sum(mask)} of its {len(kinds)} skippable layers"
    how = DAS_DESCRIPTION
    if "row" in record and not sum(mask):  # another method than DAS
        title = f"{type(vlp).__name__}, fine-tuned"
        how = f"A row of `python -m adapt compare`: {record['row']}."
    loads_with = f"This is a plain `{exported.loads_with}` with fewer blocks."
    if model.code:
        loads_with = f"Its code is `{exported.loads_with}` and what that imports. It needs torch and transformers alone."
    layers = ", ".join(f"{layer.name} {kind}" for layer, kind in zip(vlp.layers, kinds, strict=True))
    onnx = "" if exported.onnx_difference is None else f", those of `model.onnx` by {exported.onnx_difference:.2g}"
    return model_card(
        front_matter(("layer-skipping", model.config["model_type"], subnet.task.name)),
        f"{title}, for {subnet.task.name}",
        [
            f"Made by `python -m adapt export` of das_gym. {how}",
            " ".join([loads_with, *model.notes]),
            f"Mask: `{mask}`, 1 = skipped. Layers as exported: {layers}.",
            f"Fingerprint of the checkpoint: `{subnet.backbone.base}`.",
        ],
        _loading_example(model, exported.folder.name, num_images),
        results_table(record["models"]) if record.get("models") else None,
        f"On a few made-up examples the logits of this folder and of the masked model differ by at most "
        f"{exported.difference:.2g}{onnx} ({exported.parameters:,} parameters).",
    )


def _loading_example(model: ExportedModel, folder: str, num_images: int) -> str:
    trust = TRUST_ARGUMENT if model.code else ""
    auto = "AutoModel" if model.code else model.model.partition(":")[2]
    images = ", ".join(f"image_{number + 1}" for number in range(num_images))
    pixels = "images" if num_images == 1 else "{name: t[None] for name, t in images.items()}  # all of one example"
    return f"""from transformers import {", ".join(sorted((auto, "AutoImageProcessor", "AutoTokenizer")))}

folder = "{folder}"
model = {auto}.from_pretrained(folder{trust}).eval()
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
image_processor = AutoImageProcessor.from_pretrained(folder{trust})
batch = dict(tokenizer(["..."], padding=True, truncation=True, return_tensors="pt"))
images = image_processor([{images}], return_tensors="pt")
batch |= {pixels}
logits = model(**batch).logits  # model.config.id2label names them"""
