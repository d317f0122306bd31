"""From the shapes of a checkpoint's tensors to the config of its model."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from das_gym.models.meter.model import METER, METERConfig
from das_gym.models.vilt.model import ViLT, ViLTConfig

if TYPE_CHECKING:
    from das_gym.models.formats import Format
    from das_gym.models.tensor_files import TensorFile

Shapes = Mapping[str, tuple[int, ...]]
Config = METERConfig | ViLTConfig

MODELS: dict[str, tuple[type[METER], type[METERConfig]] | tuple[type[ViLT], type[ViLTConfig]]] = {
    "meter": (METER, METERConfig),
    "vilt": (ViLT, ViLTConfig),
}
"""Every model by the name that config.json says."""

HEAD_FIELDS = {
    "meter": {"num_heads": "hidden_size", "vision_heads": "vision_width", "text_heads": "text_width"},
    "vilt": {"num_heads": "hidden_size"},
}
"""Config fields that no shape tells, and the width that each divides."""

FREE_FIELDS = ("dropout", "bottleneck", "skip_bottleneck")
"""Config fields that may differ from a file's; adapters of another width than the file's fail by their shapes."""


def count(shapes: Shapes, prefix: str) -> int:
    """How many modules `prefix.0`, `prefix.1`, ... there are.

    Raises:
        ValueError: the numbers have a gap.
    """
    found = {int(m[1]) for name in shapes if (m := re.match(re.escape(prefix) + r"\.(\d{1,4})\.", name))}
    if found != set(range(len(found))):
        raise ValueError(f"{prefix} has the numbers {sorted(found)}; a whole checkpoint has 0, 1, 2, ... without a gap")
    return len(found)


def grid_side(positions: int) -> int:
    """Patches a side of that many position embeddings, the class token's included.

    Raises:
        ValueError: they are not a square and one.
    """
    side = math.isqrt(max(positions - 1, 0))
    if side < 1 or side * side + 1 != positions:
        raise ValueError(f"{positions} image positions are not a square grid and a class token")
    return side


def _bottlenecks(shapes: Shapes, parallel: str, skip: str) -> dict[str, int]:
    """Adapter widths, where the file has adapters."""
    found = {"bottleneck": shapes.get(parallel), "skip_bottleneck": shapes.get(skip)}
    return {field: shape[0] for field, shape in found.items() if shape}


def meter_sizes(shapes: Shapes) -> dict[str, Any]:
    """Config fields that the shapes of an official METER checkpoint tell."""
    text, image = shapes["cross_modal_text_transform.weight"], shapes["cross_modal_image_transform.weight"]
    patch = shapes["vit_model.visual.conv1.weight"][-1]
    embeddings = "text_transformer.embeddings"
    return {
        "image_size": patch * grid_side(shapes["vit_model.visual.positional_embedding"][0]),
        "patch_size": patch,
        "hidden_size": text[0],
        "fusion_layers": count(shapes, "cross_modal_text_layers"),
        "vision_width": image[1],
        "vision_layers": count(shapes, "vit_model.visual.transformer.resblocks"),
        "text_width": text[1],
        "text_layers": count(shapes, "text_transformer.encoder.layer"),
        "vocab_size": shapes[f"{embeddings}.word_embeddings.weight"][0],
        "max_positions": shapes[f"{embeddings}.position_embeddings.weight"][0],
        **_bottlenecks(shapes, "cross_modal_text_layers.0.adapter.down_proj.weight", "adapter_list_l.0.0.down_proj.weight"),
    }


def vilt_sizes(shapes: Shapes) -> dict[str, Any]:
    """Config fields that the shapes of an official ViLT checkpoint tell."""
    patch = shapes["transformer.patch_embed.proj.weight"][-1]
    grid = grid_side(shapes["transformer.pos_embed"][-2])
    words = shapes["text_embeddings.word_embeddings.weight"]
    return {
        "image_size": patch * grid,
        "patch_size": patch,
        "position_grid": grid,
        "hidden_size": words[1],
        "num_layers": count(shapes, "transformer.blocks"),
        "vocab_size": words[0],
        "max_positions": shapes["text_embeddings.position_embeddings.weight"][0],
        **_bottlenecks(shapes, "transformer.blocks.0.adapter0.down_proj.weight", "adapter_list.0.0.down_proj.weight"),
    }


def transformers_sizes(shapes: Shapes) -> dict[str, Any]:
    """Config fields that the shapes of a transformers ViLT tell."""
    patch = shapes["embeddings.patch_embeddings.projection.weight"][-1]
    grid = grid_side(shapes["embeddings.position_embeddings"][-2])
    words = shapes["embeddings.text_embeddings.word_embeddings.weight"]
    return {
        "image_size": patch * grid,
        "patch_size": patch,
        "position_grid": grid,
        "hidden_size": words[1],
        "num_layers": count(shapes, "encoder.layer"),
        "vocab_size": words[0],
        "max_positions": shapes["embeddings.text_embeddings.position_embeddings.weight"][0],
    }


def infer_config(file: TensorFile, form: Format, image_size: int | None, settings: Mapping[str, Any]) -> Config:
    """The config of a file's model.

    Args:
        file: Its tensors, and config.json if there is one.
        form: Its format.
        image_size: Overrides the file's, pixels.
        settings: Config fields that nothing in the file tells.

    Raises:
        ValueError: a tensor is missing, or a setting is unknown, missing or contradicts the file.
    """
    shapes = {name.removeprefix(form.prefix): tuple(tensor.shape) for name, tensor in file.tensors.items()}
    kind = MODELS[form.model][1]
    try:
        told = form.sizes(shapes)
    except KeyError as error:
        raise ValueError(f"{file.path} lacks the tensor {error}; it is not a whole {form.title}") from error
    except (ValueError, IndexError) as error:
        raise ValueError(f"{file.path}: {error}") from error
    told |= _transformers_settings(file)
    _check_settings(file, kind, told, settings)
    fields = {**told, **settings}
    for name, width in HEAD_FIELDS[form.model].items():
        if name not in fields and width in fields:
            fields[name] = _infer_heads(file, name, width, fields[width])
    if image_size is not None:
        if image_size < 1:
            raise ValueError(f"image_size={image_size} is no size; give a multiple of the patch size, in pixels")
        fields["image_size"] = image_size
    try:
        return kind(**fields)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{file.path}: {error}") from error


def _check_settings(file: TensorFile, kind: type[Config], told: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    known = [f.name for f in dataclasses.fields(kind)]
    for name in (*settings, *told):
        if name not in known:
            near = (difflib.get_close_matches(name, known, 1) or [", ".join(known)])[0]
            raise ValueError(f"{file.path}: unknown config field {name!r}; did you mean {near}?")
    for name, value in (*settings.items(), *told.items()):
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{file.path}: {name}={value!r} is no number; give one")
    for name, value in settings.items():
        if name in told and name not in FREE_FIELDS and told[name] != value:
            raise ValueError(f"{name}={value} contradicts {file.path}, whose {name} is {told[name]}; leave it out")


def _transformers_settings(file: TensorFile) -> dict[str, Any]:
    """What the config.json of a transformers folder says and no shape does."""
    if "model_type" not in file.config:
        return {}
    config = file.config
    if config["model_type"] != "vilt" or config.get("hidden_act", "gelu") != "gelu":
        kind, act = config["model_type"], config.get("hidden_act")
        raise ValueError(f"{file.path} holds a {kind} model with {act}; of transformers' models only ViLT with gelu is read")
    names = {"num_attention_heads": "num_heads", "layer_norm_eps": "norm_eps", "hidden_dropout_prob": "dropout"}
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def _infer_heads(file: TensorFile, name: str, width_name: str, width: int) -> int:
    if width % 64 == 0 and (width >= 512 or name == "vision_heads"):
        return width // 64
    raise ValueError(
        f"{file.path}: {width_name}={width} does not tell the number of attention heads; give {name}= (a divisor of {width})"
    )
