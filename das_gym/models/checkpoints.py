"""Checkpoints to models and back: official files of METER and ViLT, transformers' folders, exported folders, and our own."""

import dataclasses
import json
import pkgutil
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from das_gym.commands.settings import build
from das_gym.files import expand_home, replacing
from das_gym.models.base import VLP
from das_gym.models.formats import HEADS, Family, Format, Heads, check_sizes
from das_gym.models.macs import structure_key, without_content
from das_gym.models.tensor_files import TensorFile, check_finite, read_tensors, write_tensors
from das_gym.names import check_names

FAMILIES = {"meter": "das_gym.models.meter.model:FAMILY", "vilt": "das_gym.models.vilt.model:FAMILY"}
"""Every family whose checkpoints are read, by its name in config.json, as "module:name": imported when it is needed."""

ADAPTER_FIELDS = ("bottleneck", "skip_bottleneck")
"""Config fields that size adapters: they may differ from those of a file without adapters."""

HEAD_WIDTH = 64
BASE_WIDTH = 512
"""Width of an attention head if the file does not give it, and the smallest model width for which it is assumed."""


@cache
def families() -> dict[str, Family]:
    """Return every family whose checkpoints are read, by its name in config.json."""
    return {name: pkgutil.resolve_name(place) for name, place in FAMILIES.items()}


def find_family(vlp: VLP) -> Family | None:
    """Return the family of a model, if its checkpoints are read and written."""
    return next((family for family in families().values() if isinstance(vlp, family.model)), None)


@dataclass
class LoadReport:
    """Names of the parameters that a loaded checkpoint lacks, and of its tensors that the model does not use.

    Attributes:
        path: The file or folder.
        title: Its format.
        missing: Parameters of the model, and requested heads, that the file lacks; they are initialized as in the reference.
        unknown: Tensors of the file that the model does not use.
    """

    path: Path
    title: str
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def describe_problems(self, *expected: str) -> str | None:
        """Return the problems found, but missing names with a part in `expected`, on one line; None if there are none."""
        missing = [name for name in self.missing if not any(part in name for part in expected)]
        parts = [
            f"it lacks {_shorten(missing)}, which start untrained" if missing else "",
            f"its {_shorten(self.unknown)} are not used" if self.unknown else "",
        ]
        return "; ".join(part for part in parts if part) or None


def _shorten(names: Sequence[str]) -> str:
    """List the names; those that differ in a number, or in weight and bias, once."""
    short = [re.sub(r"\.(?:weight|bias)$", ".*", re.sub(r"\.\d+\.", ".*.", name)) for name in names]
    return ", ".join(dict.fromkeys(short))


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint's content.

    Attributes:
        vlp: The model, float32, in eval mode, on the CPU, not frozen yet.
        heads: Tensors of each head by the head's name (`vqa_classifier`, `nlvr2_classifier`, `rank_output`,
            `itm_score`, `mlm_score`, ...), named as in the head itself.
        report: What was loaded for every name.
    """

    vlp: VLP
    heads: dict[str, dict[str, Tensor]]
    report: LoadReport


def load_checkpoint(
    path: str | Path | TensorFile,
    *,
    image_size: int | None = None,
    heads: Sequence[str] = (),
    generator: torch.Generator | None = None,
    **settings: Any,
) -> LoadedCheckpoint:
    """Load a checkpoint in any known format; sizes come from the shapes of its tensors.

    Args:
        path: A file or folder in a format of one of the families, or our own folder or `.safetensors` file; or what
            `read_tensors` returned, which is emptied to save memory.
        image_size: Side of the images to come, in pixels; None = as in the file. Position embeddings are resized.
        heads: Heads that the caller needs; those that the file lacks are reported as missing.
        generator: Draws the adapters that a pre-training checkpoint lacks; None = torch's global one.
        **settings: Config fields that tensor shapes do not determine: numbers of attention heads, `dropout`, and widths of
            adapters that the file lacks. Heads are assumed to be 64 wide if the model's width is 512 or more.

    Raises:
        FileNotFoundError: The file or folder does not exist.
        ValueError: A file is damaged, incomplete or in no known format, a shape does not fit, or a setting is wrong.

    Example:
        >>> from das_gym.registration import ASSETS
        >>> loaded = load_checkpoint(ASSETS / "vilt_mini")
        >>> type(loaded.vlp).__name__, loaded.report.describe_problems("adapter")
        ('ViLT', None)
    """
    file = path if isinstance(path, TensorFile) else read_tensors(path)
    family, form, mask = _recognise(file)
    config = _infer_config(file, family, form, image_size, settings)
    report = LoadReport(file.path, form.title)
    named, sources = _rename(file, form, report)
    found_heads: Heads = {}
    for name in [name for name in named if name.startswith(HEADS)]:
        head, _, part = name.removeprefix(HEADS).partition(".")
        found_heads.setdefault(head, {})[part] = named.pop(name).float()
    family.derive(named, found_heads, config)
    with without_content():
        vlp: VLP = family.model(config)
    if mask:  # before the tensors are filled in, so that removed layers do not count as missing
        vlp.prune(np.asarray(mask, dtype=bool))
    _fill(vlp, named, sources, generator, report)
    check_finite(vlp.state_dict().items(), file.path)
    for name, tensors in found_heads.items():
        check_finite(((f"{name}.{part}", tensor) for part, tensor in tensors.items()), file.path)
    report.missing += [head for head in heads if head not in found_heads]
    return LoadedCheckpoint(vlp.eval(), found_heads, report)


class FamilyModel:
    """What METER and ViLT have in common besides `VLP`: a config of sizes, and layers built from it alone."""

    @property
    def size(self) -> str | None:
        """`base` or `mini`, by the width of the layers."""
        config: Any = self.config  # type: ignore[attr-defined]
        return "base" if config.hidden_size == type(config).hidden_size else "mini"

    def cost_key(self, index: int) -> Hashable:
        """Return a key that is equal for identically built layers of one stream; see `VLP.cost_key`."""
        vlp = cast(VLP, self)
        return vlp.layers[index].stream, structure_key(vlp.skippable_layer(index))


def save_checkpoint(
    path: str | Path,
    vlp: VLP,
    heads: Mapping[str, Mapping[str, Tensor]] | None = None,
    files: Mapping[str, str] | None = None,
    leave_out: Sequence[str] = (),
) -> None:
    """Write a model of one of the families, pruned or not, completely or not at all.

    The folder gets config.json, model.safetensors, and `files`, texts by name. `heads` are tensors by the head's name, such
    as `{"vqa_classifier": head.state_dict()}`. Parameters in `leave_out` count as missing when the file is loaded.

    Raises:
        TypeError: The model is of no family whose checkpoints are written.
        FileExistsError: The folder exists and is not empty.
    """
    path = expand_home(path)
    family = find_family(vlp)
    if family is None:
        raise TypeError(f"cannot save this model: got a {type(vlp).__name__}, expected one of {', '.join(families())}")
    config: dict[str, Any] = {"model": family.name, "config": dataclasses.asdict(cast(Any, vlp).config)}
    if vlp.pruned_mask is not None:
        config["mask"] = vlp.pruned_mask.astype(int).tolist()
    tensors = {key: tensor for key, tensor in vlp.state_dict().items() if key not in leave_out}
    for head, parts in (heads or {}).items():
        tensors.update({f"{HEADS}{head}.{key}": tensor for key, tensor in parts.items()})

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists. Give another name, or remove it first")
    with replacing(path, is_folder=True) as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for file, text in (files or {}).items():
            (folder / file).write_text(text, encoding="utf-8")
        write_tensors(folder / "model.safetensors", tensors, config)


def _recognise(file: TensorFile) -> tuple[Family, Format, Sequence[bool]]:
    config = file.config
    exported = str(config.get("model_type")).endswith("_subnet")
    if exported or "model" in config:  # our names, sizes in config.json
        name = config["model_type"].removesuffix("_subnet") if exported else config["model"]
        sizes = config.get("sizes" if exported else "config")
        if name not in FAMILIES or not isinstance(sizes, dict):
            raise ValueError(
                f"{file.path}: got the model {name!r} with the sizes {sizes}, expected one of {', '.join(FAMILIES)}"
            )
        family: Family = pkgutil.resolve_name(FAMILIES[name])
        rules = ((r"(classifier\..+)", rf"{HEADS}\1"), (r"(.+)", r"\1"))
        title = f"exported {family.model.__name__}" if exported else "das_gym checkpoint"
        return family, Format(title, (), rules, lambda shapes, _: dict(sizes)), config.get("mask") or ()
    formats = [(family, form) for family in families().values() for form in family.formats]
    for family, form in formats:
        if {name.removeprefix(form.prefix) for name in file.tensors}.issuperset(form.marks):
            return family, form, ()
    titles = f"{', '.join(form.title for _, form in formats)}, or das_gym checkpoint"
    if "model_type" in config:
        raise ValueError(
            f"{file.path} holds a model of transformers ({config['model_type']}), expected a {titles}. If it generates "
            "text, use the named config vlm_answering (model=VLM)"
        )
    first = ", ".join(list(file.tensors)[:3])
    raise ValueError(f"{file.path}: unknown checkpoint format, with the tensors {first}, ..., expected a {titles}")


def _infer_config(
    file: TensorFile, family: Family, form: Format, image_size: int | None, settings: Mapping[str, Any]
) -> Any:
    shapes = {name.removeprefix(form.prefix): tuple(tensor.shape) for name, tensor in file.tensors.items()}
    try:
        found = form.sizes(shapes, file.config)
    except KeyError as error:
        raise ValueError(f"{file.path} lacks the tensor {error}: it is an incomplete {form.title}") from error
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{file.path}: {error}") from error
    for name, value in settings.items():
        if name in found and name not in ("dropout", *ADAPTER_FIELDS) and found[name] != value:
            raise ValueError(f"`{name}` contradicts {file.path}: got {value}, expected {found[name]}. Leave it out")
    fields = {**found, **settings}
    try:
        check_names(fields, [each.name for each in dataclasses.fields(family.config)], "config field")
        for name, width in family.head_fields.items():
            if name not in fields and isinstance(fields.get(width), int):
                fields[name] = _infer_heads(name, width, fields[width], name in family.fixed_heads)
        if image_size is not None:
            fields["image_size"] = image_size
        config = build(family.config, fields)
        check_sizes(config, family.head_fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file.path}: {error}") from error
    return config


def _infer_heads(name: str, width_name: str, width: int, fixed: bool) -> int:
    if width % HEAD_WIDTH == 0 and (width >= BASE_WIDTH or fixed):
        return width // HEAD_WIDTH
    raise ValueError(
        f"{width_name}={width} does not determine the number of attention heads: pass `{name}=`, a divisor of {width}, to "
        "load_checkpoint. For commands, write a copy: save_checkpoint(OUT, load_checkpoint(IN, ...).vlp)"
    )


def _rename(file: TensorFile, form: Format, report: LoadReport) -> tuple[dict[str, Tensor], dict[str, str]]:
    named: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for name in list(file.tensors):
        tensor = file.tensors.pop(name)
        ours = form.our_names(name)
        if ours is None:
            report.unknown.append(name)
        elif not ours or ours[0] in named:
            continue  # the original code does not use it either
        elif len(ours) == 1:
            named[ours[0]] = tensor
        elif tensor.shape[0] % len(ours):
            raise ValueError(f"{file.path}: cannot split {name} into {len(ours)} parts: its shape is {tuple(tensor.shape)}")
        else:
            named.update(zip(ours, (part.clone() for part in tensor.chunk(len(ours))), strict=True))
        sources.update(dict.fromkeys(ours or (), name))
    return named, sources


def _fill(
    vlp: VLP, named: dict[str, Tensor], sources: Mapping[str, str], generator: torch.Generator | None, report: LoadReport
) -> None:
    expected = vlp.state_dict()
    device = next(iter(named.values())).device if named else torch.device("cpu")
    surplus = [name for name in named if name not in expected]
    layers = [sources.get(name, name) for name in surplus if re.search(r"\.\d+\.", name)]
    if layers:
        raise ValueError(
            f"{report.path} holds {_shorten(layers)}, which have no place in a model of these sizes: leave out `bottleneck` "
            "and `skip_bottleneck` if you gave them; otherwise the file is incomplete"
        )
    report.unknown += [sources.get(name, name) for name in surplus]
    report.missing += [name for name in expected if name not in named]
    # Adapters and poolers may start untrained, as in the reference. A frozen parameter that is not there would stay random.
    frozen = [name for name in report.missing if not any(part in name for part in vlp.tunable)]
    if frozen:
        some = ", ".join(frozen[:5]) + (", ..." if len(frozen) > 5 else "")
        raise ValueError(f"{report.path} lacks {len(frozen)} frozen parameters ({some}): it is an incomplete {report.title}")
    state = {}
    for name, wanted in expected.items():
        if name not in named:
            state[name] = _initial(name, wanted.shape, generator, device)
            continue
        tensor = named[name]
        if tensor.shape != wanted.shape or not tensor.is_floating_point():
            raise ValueError(
                f"{report.path}: {sources.get(name, name)} does not fit: got {tuple(tensor.shape)} {tensor.dtype}, expected "
                f"{tuple(wanted.shape)} floating point for {name}"
            )
        state[name] = tensor.float()
    vlp.load_state_dict(state, assign=True)
    # `load_state_dict` leaves out non-persistent buffers, which are still on `meta`: ids of positions and token types.
    for name, buffer in list(vlp.named_buffers()):
        owner, _, key = name.rpartition(".")
        ids = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone()
        values = torch.zeros_like(ids) if key == "token_type_ids" else ids
        vlp.get_submodule(owner).register_buffer(key, values, persistent=False)


def _initial(name: str, shape: torch.Size, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return a parameter as the reference starts it: N(0, 0.02), biases 0, LayerNorm weights 1."""
    if name.endswith(".bias"):
        return torch.zeros(shape, device=device)
    if name.endswith(".norm.weight"):
        return torch.ones(shape, device=device)
    if device.type == "meta":
        return torch.empty(shape, device=device)
    return torch.empty(shape, device=device).normal_(std=0.02, generator=generator)
