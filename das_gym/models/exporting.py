"""A pruned METER or ViLT with its head, in the form that transformers loads, and the code that a folder carries."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from das_gym.files import read_json, write_json, write_text
from das_gym.models.adapters import parallel_adapters
from das_gym.models.base import VLP

SHARED_CODE = ("das_gym.models.subnet", "das_gym.models.adapters", "das_gym.models.attention")
"""Modules that every folder with code needs."""

SETTINGS_FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
)
"""Files in which transformers looks for settings, also in sub-folders; other JSON files hold words of a tokenizer."""

CODE_SETTINGS = ("auto_map", "auto_mapping", "custom_pipelines", "custom_generate", "audio_tokenizer")
"""Settings by which transformers 5.24 and peft 0.19 import modules, or load another folder with the same trust."""

FOREIGN_CODE = re.compile(r"\S*--\S*\.\w+")
"""A class of another folder or repository: `owner/name--module.Class`."""

_IMPORT = re.compile(r"from das_gym\.models\.(?:\w+\.)*(\w+) import")


@dataclass(frozen=True)
class ExportedHead:
    """A head that is one linear layer, or Linear, LayerNorm, GELU, Linear.

    Attributes:
        tensors: `0.weight`, `0.bias`, and those of `1` and `3` if there are four parts.
        width: Width inside; None for one linear layer.
        num_labels: Logits.
        num_images: Images whose features it reads, next to each other.
    """

    tensors: Mapping[str, Tensor]
    width: int | None
    num_labels: int
    num_images: int


@dataclass(frozen=True)
class ExportedModel:
    """The content of an exported folder.

    Attributes:
        config: Content of config.json, without labels and what das_gym adds.
        tensors: Weights by name.
        image_processor: Content of preprocessor_config.json.
        model: The class that loads it, "module:name".
        code: Modules that the folder carries; empty if transformers has the class.
        notes: Sentences for the model card.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    image_processor: Mapping[str, Any]
    model: str
    code: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def export_head(head: nn.Module, feature_size: int) -> ExportedHead:
    """Return the parts of a task's head, which reads `feature_size` features of each image; ValueError for other heads."""
    parts: list[Any] = [p for p in (head if isinstance(head, nn.Sequential) else [head]) if not isinstance(p, nn.Flatten)]
    kinds = [type(part) for part in parts]
    known = kinds == [nn.Linear]
    if kinds == [nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear]:
        known = parts[1].eps == nn.LayerNorm(1).eps and parts[2].approximate == "none"
    if not known or any(part.bias is None for part in (parts[0], parts[-1])) or parts[0].in_features % feature_size:
        raise ValueError(
            f"this head cannot be exported: got {', '.join(kind.__name__ for kind in kinds)}, expected Linear, or Linear, "
            f"LayerNorm, GELU, Linear with default settings, that read {feature_size} features of each image"
        )
    tensors = {f"{i}.{name}": tensor for i, part in enumerate(parts) for name, tensor in part.state_dict().items()}
    width = parts[0].out_features if len(parts) > 1 else None
    return ExportedHead(tensors, width, parts[-1].out_features, parts[0].in_features // feature_size)


def layer_kinds(vlp: VLP) -> list[str]:
    """Return what each layer of a pruned model is now: `layer`, `adapter` or `nothing`; ValueError before `prune`."""
    if vlp.pruned_mask is None:
        raise ValueError("this model is not pruned: call `vlp.prune(mask)` first; a mask of zeros keeps every layer")
    kinds = []
    for index, skipped in enumerate(vlp.pruned_mask.tolist()):
        replacement = "nothing" if isinstance(vlp.skippable_layer(index).skip_adapter, nn.Identity) else "adapter"
        kinds.append(replacement if skipped else "layer")
    return kinds


def export_with_code(
    vlp: Any,
    head: ExportedHead,
    model: str,
    code: tuple[str, ...],
    image_processor: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> ExportedModel:
    """Return a pruned model that a class of ours loads; see `ExportedModel`.

    `code` are the modules that the folder carries besides `SHARED_CODE`; the first has the class.
    """
    kinds = layer_kinds(vlp)
    name = model.partition(":")[2]
    file = code[0].rpartition(".")[2]
    sizes = dataclasses.replace(  # where adapters were removed, the folder has none either
        vlp.config,
        bottleneck=vlp.config.bottleneck if parallel_adapters(vlp) else 0,
        skip_bottleneck=0 if "nothing" in kinds else vlp.config.skip_bottleneck,
    )
    automatic = {"AutoConfig": f"{name}Config", "AutoModel": name, "AutoModelForVisualQuestionAnswering": name}
    return ExportedModel(
        config={
            "model_type": file.removeprefix("modeling_"),
            "architectures": [name],
            "auto_map": {auto: f"{file}.{kind}" for auto, kind in automatic.items()},
            "sizes": dataclasses.asdict(sizes),
            "mask": vlp.pruned_mask.astype(int).tolist(),
            "num_images": head.num_images,
            "head_width": head.width,
        },
        tensors=vlp.state_dict() | {f"classifier.{part}": tensor for part, tensor in head.tensors.items()},
        image_processor=image_processor,
        model=model,
        code=(*code, *SHARED_CODE),
        notes=notes,
    )


def copy_code(folder: Path, *modules: str) -> None:
    """Copy modules of `das_gym.models` into a folder, with imports of each other made relative.

    They import torch, transformers and each other alone. transformers takes such files along when it loads the first of them
    with `trust_remote_code=True`.
    """
    for module in modules:
        file: Any = importlib.import_module(module).__file__
        code = Path(file).read_text(encoding="utf-8")
        write_text(folder / f"{module.rpartition('.')[2]}.py", _IMPORT.sub(r"from .\1 import", code))


def remove_code_settings(folder: Path) -> None:
    """Remove every setting that names code, or kernels of the Hub, from a folder's files, and from those in sub-folders."""
    for path in sorted(folder.rglob("*.json")):
        if path.name not in SETTINGS_FILES:
            continue
        try:
            content = read_json(path)
        except ValueError:  # transformers cannot read it either
            path.unlink()
            continue
        plain = _without_code(content)
        if plain != content:
            write_json(path, plain, indent=2)


def _without_code(value: Any) -> Any:
    """Return JSON content without entries that name code, at any depth."""
    if isinstance(value, dict):
        return {name: _without_code(inner) for name, inner in value.items() if not _names_code(name, inner)}
    if isinstance(value, list):
        return [_without_code(inner) for inner in value]
    return value


def _names_code(name: str, value: Any) -> bool:
    if name in CODE_SETTINGS:
        return True
    if name.endswith(("_implementation", "_implementation_internal")):  # a kernel, also by part of the model
        return "/" in json.dumps(value)
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and FOREIGN_CODE.fullmatch(text) for text in texts)
