"""Write the model card of an exported METER or ViLT subnet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from das_gym.adapt.card import TRUST, model_card
from das_gym.adapt.report import results_table

from das_gym.models.exporting import ExportedModel, layer_kinds
from das_gym.problem.loading import AdaptedModel

if TYPE_CHECKING:
    from das_gym.adapt.export.folder import ExportedFolder

DAS = (
    "Dynamic Architecture Skipping (arXiv 2309.01479) freezes a vision-language model, removes the layers that a task does "
    "not need, replaces them by bottleneck adapters, adds parallel adapters to the sub-layers of the others, and trains "
    "the adapters and the head."
)


def subnet_card(
    subnet: AdaptedModel, model: ExportedModel, exported: ExportedFolder, record: Mapping[str, Any], num_images: int
) -> str:
    """Return the text of the folder's README.md."""
    vlp, task = subnet.backbone.vlp, subnet.task.name
    kinds, mask = layer_kinds(vlp), vlp.check_mask(None).astype(int).tolist()
    title, how = f"{type(vlp).__name__} without {sum(mask)} of its {len(kinds)} skippable layers", DAS
    if "row" in record and not sum(mask):  # another method than DAS
        title, how = f"{type(vlp).__name__}, fine-tuned", f"A row of `python -m adapt compare`: {record['row']}."
    loads_with = f"This is a plain `{exported.loads_with}` with fewer blocks."
    if model.code:
        loads_with = f"Its code is `{exported.loads_with}` and what that imports. It needs torch and transformers alone."
    problem = record.get("problem") or {}
    names = ("checkpoint", "data_root", *(() if "row" in record else ("supernet",)))  # a comparison has new adapters
    sources = "".join(f", {name} {problem.get(name) or 'bundled'}" for name in names if problem)
    layers = ", ".join(f"{layer.name} {kind}" for layer, kind in zip(vlp.layers, kinds, strict=True))
    onnx = "" if exported.onnx_difference is None else f", those of `model.onnx` by {exported.onnx_difference:.1e}"
    return model_card(
        f"---\nlibrary_name: transformers\ntags: [layer-skipping, {model.config['model_type']}, {task}]\n---",
        f"{title}, for {task}",
        [
            f"Made by `python -m adapt export` of das_gym. {how}",
            " ".join([loads_with, *model.notes]),
            f"Mask: `{mask}`, 1 = skipped. Layers as exported: {layers}.",
            f"Source: fingerprint of the checkpoint `{subnet.backbone.base}`{sources}.",
        ],
        _loading_example(model, exported.folder.name, num_images),
        results_table(record["models"]) if record.get("models") else None,
        f"On a few made-up examples the logits of this folder and of the masked model differ by at most "
        f"{exported.difference:.1e}{onnx} ({exported.parameters:,} parameters).",
    )


def _loading_example(model: ExportedModel, folder: str, num_images: int) -> str:
    trust = TRUST if model.code else ""
    auto = "AutoModel" if model.code else model.model.partition(":")[2]
    if num_images == 1 and model.image_processor.get("processor_class") is not None:
        names = sorted({auto, "AutoProcessor"})
        batch = f"""processor = AutoProcessor.from_pretrained(folder{trust})
batch = processor([image], ["..."], padding=True, truncation=True, return_tensors="pt")"""
    else:
        names = sorted({auto, "AutoImageProcessor", "AutoTokenizer"})
        images = "image" if num_images == 1 else ", ".join(f"image_{i + 1}" for i in range(num_images))
        pixels = "images" if num_images == 1 else "{name: t[None] for name, t in images.items()}  # all of one example"
        batch = f"""tokenizer = AutoTokenizer.from_pretrained(folder{trust})
image_processor = AutoImageProcessor.from_pretrained(folder{trust})
batch = dict(tokenizer(["..."], padding=True, truncation=True, return_tensors="pt"))
images = image_processor([{images}], return_tensors="pt")
batch |= {pixels}"""
    return f"""from transformers import {", ".join(names)}

folder = "{folder}"
model = {auto}.from_pretrained(folder{trust}).eval()
{batch}
logits = model(**batch).logits  # model.config.id2label names them"""
