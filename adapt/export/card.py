"""The model card of an exported METER or ViLT subnet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from das_gym.adapt.report import results_table

from das_gym.drawing.table import markdown_table
from das_gym.models.exporting import ExportedModel, layer_kinds
from das_gym.problem.loading import AdaptedModel
from das_gym.runs import library_versions

if TYPE_CHECKING:
    from das_gym.adapt.export.folder import ExportedFolder

DAS = (
    "Dynamic Architecture Skipping (arXiv 2309.01479) freezes a vision-language model, removes the layers that a task does "
    "not need, replaces them by bottleneck adapters, adds parallel adapters to the sub-layers of the others, and trains "
    "the adapters and the head."
)


def model_card(
    subnet: AdaptedModel, model: ExportedModel, exported: ExportedFolder, record: Mapping[str, Any], num_images: int
) -> str:
    """Return the text of the folder's README.md."""
    vlp, task = subnet.backbone.vlp, subnet.task.name
    kinds, mask = layer_kinds(vlp), vlp.check_mask(None).astype(int).tolist()
    title, how = f"{type(vlp).__name__} without {sum(mask)} of its {len(kinds)} skippable layers", DAS
    if "row" in record and not sum(mask):  # another method than DAS
        title, how = f"{type(vlp).__name__}, fine-tuned", f"A row of `python -m adapt compare`: {record['row']}."
    layers = markdown_table(
        ("layer", "exported as"), [(layer.name, kind) for layer, kind in zip(vlp.layers, kinds, strict=True)], (0, 1)
    )
    loads_with = f"This is a plain `{exported.loads_with}` with fewer blocks."
    if model.code:
        loads_with = (
            f"The code is `{exported.loads_with}` and the files that it imports. It needs torch and transformers alone."
        )
    source = {"fingerprint of the checkpoint": f"`{subnet.backbone.base}`", "task": task}
    if problem := record.get("problem"):
        source |= {"checkpoint": problem.get("checkpoint") or "bundled", "data": problem.get("data_root") or "bundled"}
        if "row" not in record:  # a comparison starts from new adapters
            source["supernet"] = problem.get("supernet") or "bundled"
    result = results_table(record["models"]).markdown() if record.get("models") else "The run has no recorded result."
    versions = library_versions()
    installed = ", ".join(f"{name} {versions[name]}" for name in ("das_gym", "torch", "transformers"))
    onnx = "" if exported.onnx_difference is None else f", those of `model.onnx` by {exported.onnx_difference:.1e}"
    parts = [
        f"---\nlibrary_name: transformers\ntags: [layer-skipping, {model.config['model_type']}, {task}]\n---",
        f"# {title}, for {task}",
        f"Made by `python -m adapt export` of das_gym. {how}",
        f"## Loading\n\n```python\n{_loading_example(model, exported.folder.name, num_images)}\n```",
        " ".join([loads_with, *model.notes]),
        f"## Layers\n\nMask: `{mask}`, 1 = skipped.",
        "\n".join(layers),
        "## Source",
        "\n".join(f"- {name}: {value}" for name, value in source.items()),
        f"## Result\n\n{result}",
        f"On a few made-up examples the logits of this folder and of the masked model differ by at most "
        f"{exported.difference:.1e}{onnx} ({exported.parameters:,} parameters; {installed}).",
    ]
    return "\n\n".join(parts) + "\n"


def _loading_example(model: ExportedModel, folder: str, num_images: int) -> str:
    trust = ", trust_remote_code=True" if model.code else ""
    auto = "AutoModel" if model.code else model.model.partition(":")[2]
    if num_images == 1 and model.image_processor.get("processor_class") is not None:
        names = sorted({auto, "AutoProcessor"})
        batch = [
            f"processor = AutoProcessor.from_pretrained(folder{trust})",
            'batch = processor([image], ["..."], padding=True, truncation=True, return_tensors="pt")',
        ]
    else:
        names = sorted({auto, "AutoImageProcessor", "AutoTokenizer"})
        images = "image" if num_images == 1 else ", ".join(f"image_{i + 1}" for i in range(num_images))
        pixels = "images" if num_images == 1 else "{name: t[None] for name, t in images.items()}  # all of one example"
        batch = [
            f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})",
            f"image_processor = AutoImageProcessor.from_pretrained(folder{trust})",
            'batch = dict(tokenizer(["..."], padding=True, truncation=True, return_tensors="pt"))',
            f'images = image_processor([{images}], return_tensors="pt")',
            f"batch |= {pixels}",
        ]
    return "\n".join(
        [
            f"from transformers import {', '.join(names)}",
            "",
            f'folder = "{folder}"',
            f"model = {auto}.from_pretrained(folder{trust}).eval()",
            *batch,
            "logits = model(**batch).logits  # model.config.id2label names them",
        ]
    )
