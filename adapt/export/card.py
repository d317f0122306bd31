"""The model card of an exported subnet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from das_gym.adapt.report import results_table

from das_gym.models.exporting import ExportedModel, layer_kinds
from das_gym.problem.loading import AdaptedModel
from das_gym.runs import library_versions

if TYPE_CHECKING:
    from das_gym.adapt.export.folder import Exported


def model_card(
    subnet: AdaptedModel, model: ExportedModel, exported: Exported, record: Mapping[str, Any], num_images: int
) -> str:
    """The text of the folder's README.md.

    Args:
        subnet: What was written.
        model: Its content.
        exported: Where, and how exactly.
        record: The content of the run's record, or what `compare` says of a row; may be empty.
        num_images: Images of an example.
    """
    vlp = subnet.backbone.vlp
    kinds, mask = layer_kinds(vlp), vlp.check_mask(None).astype(int).tolist()
    rows = [f"| {layer.name} | {kind} |" for layer, kind in zip(vlp.layers, kinds, strict=True)]
    what = f"{type(vlp).__name__} without {sum(mask)} of its {len(kinds)} skippable layers"
    how = (
        "Dynamic Architecture Skipping (arXiv 2309.01479) freezes a "
        "vision-language model, takes out the layers that a task does not need, puts bottleneck adapters in their place and "
        "beside the sub-layers of the others, and trains those and the head."
    )
    if "row" in record and not sum(mask):  # of another method
        what, how = f"{type(vlp).__name__}, fine-tuned", f"A row of `python -m adapt compare`: {record['row']}."
    tags = ", ".join(["layer-skipping", str(model.config["model_type"]), subnet.task.name])
    code = _loading(model, exported, num_images)
    parts = [
        f"---\nlibrary_name: transformers\ntags: [{tags}]\n---",
        f"# {what}, for {subnet.task.name}",
        f"Made by `python -m adapt export` of das_gym. {how}",
        f"## Loading\n\n```python\n{code}\n```\n\n{' '.join([_how(model, exported), *model.notes])}",
        "\n".join([f"## Layers\n\nMask: `{mask}`, 1 = skipped.\n", "| layer | what stands there |", "|---|---|", *rows]),
        f"## Made from\n\n{_source(subnet, record)}",
        f"## Result\n\n{_result(record)}\n\n{_exactness(exported)}",
    ]
    return "\n\n".join(parts) + "\n"


def _exactness(exported: Exported) -> str:
    versions, onnx = library_versions(), exported.onnx_difference
    installed = ", ".join(f"{name} {versions[name]}" for name in ("das_gym", "torch", "transformers"))
    also = "" if onnx is None else f", those of `model.onnx` by {onnx:.1e}"
    return (
        f"On a few made-up examples the logits of this folder and of the masked model differ by at most "
        f"{exported.difference:.1e}{also} ({exported.parameters:,} parameters; {installed})."
    )


def _loading(model: ExportedModel, exported: Exported, num_images: int) -> str:
    trust = "" if not model.code else ", trust_remote_code=True"
    kind = model.model.partition(":")[2] if not model.code else "AutoModel"
    whole = num_images == 1 and model.image_processor.get("processor_class") is not None
    names = sorted({kind, *(("AutoProcessor",) if whole else ("AutoImageProcessor", "AutoTokenizer"))})
    lines = [f"from transformers import {', '.join(names)}", "", f'folder = "{exported.folder.name}"']
    lines += [f"model = {kind}.from_pretrained(folder{trust}).eval()"]
    if whole:
        lines += [f"processor = AutoProcessor.from_pretrained(folder{trust})"]
        lines += ['batch = processor([picture], ["..."], padding=True, truncation=True, return_tensors="pt")']
    else:
        pictures = "picture" if num_images == 1 else ", ".join(f"picture_{i + 1}" for i in range(num_images))
        lines += [f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})"]
        lines += [f"image_processor = AutoImageProcessor.from_pretrained(folder{trust})"]
        lines += ['batch = dict(tokenizer(["..."], padding=True, truncation=True, return_tensors="pt"))']
        lines += [f'images = image_processor([{pictures}], return_tensors="pt")']
        together = "images" if num_images == 1 else "{name: t[None] for name, t in images.items()}  # all are of one example"
        lines += [f"batch |= {together}"]
    return "\n".join([*lines, "logits = model(**batch).logits  # model.config.id2label names them"])


def _how(model: ExportedModel, exported: Exported) -> str:
    if not model.code:
        return f"This is a plain `{exported.loads_with}`, with fewer blocks."
    return f"`{exported.loads_with}` and the files that it imports are the code. It needs torch and transformers alone."


def _source(subnet: AdaptedModel, record: Mapping[str, Any]) -> str:
    problem = record.get("problem", {})
    lines = {
        "checkpoint": problem.get("checkpoint") or "das_gym's bundled one",
        "its fingerprint": f"`{subnet.backbone.base}`",
        "task": subnet.task.name,
        "data": problem.get("data_root") or "das_gym's bundled",
        "supernet": problem.get("supernet") or "das_gym's bundled one",
    }
    if "row" in record:  # a comparison begins from new adapters
        del lines["supernet"]
    if not problem:
        lines = {name: value for name, value in lines.items() if name in ("its fingerprint", "task")}
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def _result(record: Mapping[str, Any]) -> str:
    return results_table(record["models"]).markdown() if record.get("models") else "The run has no recorded result."
