"""Write a fine-tuned subnet as a folder in transformers' conventions."""

from __future__ import annotations

import copy
import json
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from das_gym.adapt.export.card import model_card
from das_gym.adapt.export.graph import FILE as ONNX_FILE
from das_gym.adapt.export.graph import require_onnx, write_onnx
from das_gym.adapt.export.probe import as_transformers, probe, subnet_logits

from das_gym.files import at_home, write_text
from das_gym.models.checkpoints import families, family_of
from das_gym.models.exporting import DAS_GYM, ExportedModel, export_head
from das_gym.models.quiet import quiet_loading
from das_gym.models.remote_code import copy_code
from das_gym.models.tensor_files import CHECKSUM, checksum, write_folder, write_safetensors
from das_gym.plugins import imported_plugins
from das_gym.problem.loading import AdaptedModel
from das_gym.runs import library_versions

TOLERANCE = 1e-5
"""Largest difference of a logit, relative to the largest, between the subnet and the folder."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        loads_with: The class of transformers, or the file of code, that loads it.
        parameters: How many it has.
        difference: Largest difference of a logit from the subnet's.
        onnx_difference: The same of the ONNX file; None where none was asked for.
    """

    folder: Path
    loads_with: str
    parameters: int
    difference: float
    onnx_difference: float | None = None


def check_out(out: str | os.PathLike[str]) -> Path:
    """The folder to write, which is not there yet.

    Raises:
        FileExistsError: something is.
        NotADirectoryError: its parent is a file.
    """
    out = at_home(out)
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"out={out} exists; give a folder that does not, or remove it first")
    parent = next(part for part in out.absolute().parents if part.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"out={out} cannot be made: {parent} is a file; give another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"out={out} cannot be made: {parent} is not writable; give another folder")
    return out


def export(
    subnet: AdaptedModel,
    out: str | os.PathLike[str],
    onnx: bool = False,
    record: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a subnet with its head, whole or not at all: config, weights, tokenizer, image processor, code, model card.

    The folder is loaded again, and what it says of a few examples compared with the subnet, before it appears.

    Args:
        subnet: As `load_subnet` gives it.
        out: A folder that does not exist.
        onnx: Whether it gets a `model.onnx` besides.
        record: The content of the run's `adapt.json` or `das.json`, for the model card.

    Raises:
        FileExistsError: `out` exists.
        ValueError: a model, head or task that cannot be written; or what was written does not say the same.
    """
    out = check_out(out)
    if onnx:
        require_onnx()
    vlp = subnet.backbone.vlp
    family = family_of(vlp)
    if family is None:
        known = " and ".join(each.model.__name__ for each in families().values())
        raise ValueError(
            f"a {type(vlp).__name__} cannot be exported, only {known}: its run folder keeps it, "
            "and das_gym.adapt.load_subnet loads it from there"
        )
    head = export_head(subnet.head, vlp.feature_size)
    model = family.export(vlp, head)
    found: list[Exported] = []

    def fill(folder: Path) -> None:
        config = {**model.config, **_labels(subnet, head.num_labels), DAS_GYM: _about(subnet, head.num_images)}
        _write_files(folder, subnet, model, config)
        difference = _compare(subnet, model, head.num_images, folder)
        graph = write_onnx(subnet, head.num_images, folder / ONNX_FILE) if onnx else None
        count = sum(tensor.numel() for tensor in model.tensors.values())
        file = model.model.partition(":")[0].rpartition(".")[2]
        loads_with = f"{file}.py" if model.code else model.model.replace(":", ".")
        found.append(Exported(out, loads_with, count, difference, graph))
        card = model_card(subnet, model, found[0], record or {}, head.num_images)
        write_text(folder / "README.md", card)

    write_folder(out, fill)
    return found[0]


def _labels(subnet: AdaptedModel, count: int) -> dict[str, Any]:
    named = subnet.task.logit_names
    labels = named if len(named) == count else [f"LABEL_{i}" for i in range(count)]
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def _about(subnet: AdaptedModel, num_images: int) -> dict[str, Any]:
    """What das_gym reads in config.json."""
    processor, mask = subnet.task.processor, subnet.backbone.vlp.check_mask(None)
    return {
        "task": subnet.task.name,
        "labels": list(subnet.task.labels),
        "mask": mask.astype(int).tolist(),
        "skipped_layers": [layer.name for layer, skipped in zip(subnet.backbone.vlp.layers, mask, strict=True) if skipped],
        "image_size": processor.image_size,
        "max_text_length": processor.max_text_length,
        "num_images": num_images,
        "plugins": list(imported_plugins()),
        "version": library_versions()["das_gym"],
    }


def _write_files(folder: Path, subnet: AdaptedModel, model: ExportedModel, config: Mapping[str, Any]) -> None:
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in model.tensors.items()}
    dtype = next(iter(ready.values())).dtype
    whole = {
        **config,
        "dtype": str(dtype).removeprefix("torch."),
        "transformers_version": library_versions()["transformers"],
    }
    whole[DAS_GYM] = {**whole[DAS_GYM], CHECKSUM: checksum(ready, {})}
    for name, content in (("config.json", whole), ("preprocessor_config.json", model.image_processor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_safetensors(folder / "model.safetensors", ready, {"format": "pt"})
    tokenizer = copy.deepcopy(subnet.task.processor.tokenizer)
    tokenizer.model_max_length = subnet.task.processor.max_text_length
    for name in ("is_local", "local_files_only", "trust_remote_code", "auto_map"):  # how it was loaded, and code not run
        tokenizer.init_kwargs.pop(name, None)
    if hasattr(tokenizer, "backend_tokenizer"):  # the last call's, which would be saved
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    copy_code(folder, *model.code)


@torch.no_grad()
def _compare(subnet: AdaptedModel, model: ExportedModel, num_images: int, folder: Path) -> float:
    """Largest difference of a logit between the subnet and what the folder loads to.

    Raises:
        ValueError: it is more than `TOLERANCE` of the largest logit; or tensors are missing, or too many.
    """
    with quiet_loading():
        loaded, info = pkgutil.resolve_name(model.model).from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    version = f"transformers {library_versions()['transformers']} is installed"
    odd = sorted(map(str, (*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"])))
    if odd:
        raise ValueError(f"the folder does not load whole ({', '.join(odd[:5])}): nothing was written; {version}")
    batch = probe(subnet, num_images)
    wanted = subnet_logits(subnet, batch)
    found = loaded.to(wanted.device, wanted.dtype).eval()(**as_transformers(batch, num_images)).logits
    difference = float((found.reshape(-1) - wanted).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise ValueError(
            f"the folder's logits differ from the subnet's by {difference:.1e}: nothing was written; {version}, "
            "das_gym knows 5.20 and later"
        )
    return difference
