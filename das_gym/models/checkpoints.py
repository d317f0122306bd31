"""Checkpoints to models and back, of every family that has formats: official files, transformers' folders, and our own."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from das_gym.files import at_home
from das_gym.models.base import VLP
from das_gym.models.formats import HEADS, SEARCH, Family, Format
from das_gym.models.macs import without_content
from das_gym.models.tensor_files import TensorFile, check_finite, read_tensors, write_folder, write_tensors

Heads = Mapping[str, Mapping[str, Tensor]]

FAMILIES = ("das_gym.models.meter.checkpoint:FAMILY", "das_gym.models.vilt.checkpoint:FAMILY")
"""Every family that has formats, as "module:name": loaded when a file is read or written."""

ADAPTER_FIELDS = ("bottleneck", "skip_bottleneck")
"""Config fields that size adapters: they may differ from a file's that holds none."""

FREE_FIELDS = ("dropout", *ADAPTER_FIELDS)
"""Config fields that may differ from a file's; its trained adapters are never dropped for it."""

HEAD_WIDTH, USUAL_WIDTH = 64, 512
"""Units an attention head has where no file says otherwise, in models at least so wide."""


@cache
def families() -> dict[str, Family]:
    """Every family that has formats, by the name that config.json says."""
    return {family.name: family for family in map(pkgutil.resolve_name, FAMILIES)}


def family_of(vlp: VLP) -> Family | None:
    """The family of a model; None where it is of none that has formats."""
    return next((family for family in families().values() if isinstance(vlp, family.model)), None)


@dataclass
class LoadReport:
    """What became of every name.

    Attributes:
        path: The file or folder.
        title: What it was taken for.
        missing: Our parameters (and heads asked for) that it lacks; parameters start as the reference starts them.
        derived: Tensors that were computed from others of the file, each with how.
        unused: Its tensors that the reference never uses either.
        unknown: Its tensors that have no place in the model.
        odd: What is unusual about it, in words.
        checked: Whether checksums in the file prove that nothing of it has changed.
    """

    path: Path
    title: str
    missing: list[str] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    checked: bool = True

    def __str__(self) -> str:
        """One line a group; names that differ in a number, or in weight and bias, are written once."""
        groups = {what: getattr(self, what) for what in ("missing", "derived", "unused", "unknown")}
        lines = [f"{what} ({len(names)}): {_short(names) or '-'}" for what, names in groups.items()]
        unknown = [] if self.checked else ["it holds no checksums: a byte of it that has changed could not be told"]
        return "\n".join([f"{self.path}: {self.title}", *lines, *self.odd, *unknown])

    def doubts(self, *expected: str) -> str | None:
        """What a person has to know before using the model, in a line; None if all is well.

        Args:
            expected: Parts of names that may be missing.
        """
        missing = [name for name in self.missing if not any(part in name for part in expected)]
        parts = [
            f"it lacks {_short(missing)}, which start untrained" if missing else "",
            f"nothing is known of its {_short(self.unknown)}, which are not used" if self.unknown else "",
            *self.odd,
        ]
        return "; ".join(part for part in parts if part) or None


def _short(names: Sequence[str]) -> str:
    """The names; those that differ in a number, or in weight and bias, once."""
    pattern = r"\.\d+\.|\.(?:weight|bias)$"
    return ", ".join(
        dict.fromkeys(re.sub(pattern, lambda m: ".*." if m[0][1:2].isdigit() else ".*", name) for name in names)
    )


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's content.

    Attributes:
        vlp: The model, float32, in eval mode, on the CPU, not frozen yet.
        heads: Tensors of each head by the head's name (`vqa_classifier`, `nlvr2_classifier`, `rank_output`,
            `itm_score`, `mlm_score`, ...), named as in the head itself.
        search: What a DAS search left: `das_gate` (n_layers,), `skip_num` (1,); empty otherwise.
        report: What became of every name.
    """

    vlp: VLP
    heads: dict[str, dict[str, Tensor]]
    search: dict[str, Tensor]
    report: LoadReport


def load_checkpoint(
    path: str | Path,
    *,
    image_size: int | None = None,
    heads: Sequence[str] = (),
    generator: torch.Generator | None = None,
    **settings: Any,
) -> Loaded:
    """Load a checkpoint of any known kind; sizes come from the shapes of its tensors.

    Args:
        path: A file or folder in a format of one of the families, or our own folder or `.safetensors` file.
        image_size: Side of the images to come, in pixels; None = as in the file. Position embeddings are resized here,
            unless the model does so as it runs.
        heads: Heads that the caller needs; those that the file lacks are reported as missing.
        generator: Draws the adapters that a pre-training checkpoint lacks; None = torch's global one.
        **settings: Config fields that shapes do not tell: numbers of attention heads, `dropout`, and widths of adapters
            that the file lacks. Attention heads are taken to be 64 wide where a width is 512 or more; smaller models
            need them.

    Raises:
        FileNotFoundError: nothing to load there.
        ValueError: a file that is damaged, of no known kind, or incomplete; a shape that does not fit; a wrong setting.
    """
    return assemble(read_tensors(path), image_size=image_size, heads=heads, generator=generator, settings=settings)


def load_vlp(path: str | Path, **settings: Any) -> VLP:
    """The model of a checkpoint alone; see `load_checkpoint`."""
    return load_checkpoint(path, **settings).vlp


class Pretrained:
    """What a model of one of the families has of transformers' models."""

    @classmethod
    def from_pretrained(cls, path: str | Path, **settings: Any) -> Self:
        """The model in a checkpoint of any known kind, exported folders among them; see `load_checkpoint`.

        Raises:
            ValueError: it holds another model.
        """
        vlp = load_vlp(path, **settings)
        if not isinstance(vlp, cls):
            raise ValueError(f"{path} holds a {type(vlp).__name__}: load it by {type(vlp).__name__}.from_pretrained")
        return vlp

    def save_pretrained(self, path: str | Path) -> None:
        """Write the model, pruned or not, as a folder that `from_pretrained` reads; see `save_checkpoint`."""
        save_checkpoint(path, cast(VLP, self))


def save_checkpoint(
    path: str | Path,
    vlp: VLP,
    heads: Heads | None = None,
    files: Mapping[str, str] | None = None,
    search: Mapping[str, Tensor] | None = None,
    leave_out: Sequence[str] = (),
) -> None:
    """Write a model, whole or not at all.

    Args:
        path: A folder, or a file that ends in `.safetensors`. A folder holds config.json and model.safetensors.
        vlp: A model of one of the families, pruned or not.
        heads: Tensors of each head by the head's name, for example `{"vqa_classifier": head.state_dict()}`.
        files: More text files for the folder, for example `{"tokenizer.json": ...}`.
        search: As `Loaded.search`.
        leave_out: Names of parameters to leave out; they count as missing when the file is loaded.

    Raises:
        TypeError: the model is of no family that has formats.
        ValueError: `files` for a single file.
        FileExistsError: the folder exists and is no checkpoint.
    """
    path = at_home(path)
    family = family_of(vlp)
    if family is None:
        raise TypeError(f"a {type(vlp).__name__} cannot be saved; give one of {', '.join(families())}")
    config: dict[str, Any] = {"model": family.name, "config": dataclasses.asdict(cast(Any, vlp).config)}
    if vlp.pruned_mask is not None:
        config["settled_mask"] = vlp.pruned_mask.tolist()
    tensors = {key: tensor for key, tensor in vlp.state_dict().items() if key not in set(leave_out)}
    for head, parts in (heads or {}).items():
        tensors.update({f"{HEADS}{head}.{key}": tensor for key, tensor in parts.items()})
    tensors.update({f"{SEARCH}{key}": tensor for key, tensor in (search or {}).items()})
    if path.suffix == ".safetensors":
        if files:
            raise ValueError(f"{path} is one file and cannot hold {', '.join(files)}; give a folder instead")
        write_tensors(path, tensors, config)
        return

    def fill(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for file, text in (files or {}).items():
            (folder / file).write_text(text, encoding="utf-8")
        write_tensors(folder / "model.safetensors", tensors, config)

    write_folder(path, fill)


def assemble(
    file: TensorFile,
    *,
    image_size: int | None = None,
    heads: Sequence[str] = (),
    generator: torch.Generator | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Loaded:
    """The second half of `load_checkpoint`: from tensors (which it takes out of `file`) to a model."""
    family, form = _recognise(file)
    config = _infer_config(file, family, form, image_size, settings or {})
    report = LoadReport(file.path, form.title, odd=family.oddities(config), checked=file.checked)
    named, sources = _rename(file, form, report)
    found_heads = _take_heads(named)
    search = {name.removeprefix(SEARCH): named.pop(name) for name in list(named) if name.startswith(SEARCH)}
    report.derived += family.derive(named, found_heads, config)
    with without_content():
        vlp: VLP = family.model(config)
    mask = form.mask(file.config)
    if mask is not None:
        vlp.prune(np.asarray(mask, dtype=bool))
    _fill(vlp, named, sources, generator, report)
    every = [vlp.state_dict(), *({f"{name}.{part}": t for part, t in head.items()} for name, head in found_heads.items())]
    check_finite((item for tensors in every for item in tensors.items()), file.path)
    report.missing += [head for head in heads if head not in found_heads]
    return Loaded(vlp.eval(), found_heads, search, report)


def _recognise(file: TensorFile) -> tuple[Family, Format]:
    """The family and the format of the file.

    Raises:
        ValueError: none is known.
    """
    known = families()
    if "model" in file.config:
        model, config = file.config["model"], file.config.get("config")
        if model not in known or not isinstance(config, dict):
            raise ValueError(f"{file.path} holds the model {model!r} with the config {config}; known are {', '.join(known)}")
        return known[model], Format("das_gym checkpoint", (), ((r"(.+)", r"\1"),), lambda shapes, _: dict(config))
    formats = [(family, form) for family in known.values() for form in family.formats]
    for family, form in formats:
        if {name.removeprefix(form.prefix) for name in file.tensors}.issuperset(form.marks):
            return family, form
    first = ", ".join(list(file.tensors)[:3])
    kind = f" (config.json says {file.config['model_type']})" if "model_type" in file.config else ""
    raise ValueError(
        f"{file.path} is of no known kind{kind} (its tensors: {first}, ...); known are "
        f"{', '.join(form.title for _, form in formats)}, and our own"
    )


def _infer_config(
    file: TensorFile, family: Family, form: Format, image_size: int | None, settings: Mapping[str, Any]
) -> Any:
    """The config of a file's model.

    Raises:
        ValueError: a tensor is missing, or a setting is unknown, missing or contradicts the file.
    """
    shapes = {name.removeprefix(form.prefix): tuple(tensor.shape) for name, tensor in file.tensors.items()}
    try:
        told = form.sizes(shapes, file.config)
    except KeyError as error:
        raise ValueError(f"{file.path} lacks the tensor {error}; it is not a whole {form.title}") from error
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{file.path}: {error}") from error
    _check_settings(file, family.config, told, settings)
    fields = {**told, **settings}
    for name, width in family.head_fields.items():
        if name not in fields and width in fields:
            fields[name] = _infer_heads(file, name, width, fields[width], name in family.always_told)
    if image_size is not None:
        if image_size < 1:
            raise ValueError(f"image_size={image_size} is no size; give a multiple of the patch size, in pixels")
        fields["image_size"] = image_size
    try:
        return family.config(**fields)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{file.path}: {error}") from error


def _check_settings(file: TensorFile, kind: type[Any], told: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
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


def _infer_heads(file: TensorFile, name: str, width_name: str, width: int, always: bool) -> int:
    if width % HEAD_WIDTH == 0 and (width >= USUAL_WIDTH or always):
        return width // HEAD_WIDTH
    raise ValueError(
        f"{file.path}: {width_name}={width} does not tell the number of attention heads: give load_checkpoint "
        f"{name}= (a divisor of {width}), or write a copy by `python -m adapt convert with source=IN out=OUT {name}=N`"
    )


def _rename(file: TensorFile, form: Format, report: LoadReport) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under our names, taken out of the file, and the file's name for each of ours."""
    named: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for name in list(file.tensors):
        tensor = file.tensors.pop(name)
        ours = form.our_names(name)
        if ours is None:
            report.unknown.append(name)
        elif not ours or ours[0] in named:
            report.unused.append(name)
        elif len(ours) == 1:
            named[ours[0]] = tensor
        elif tensor.shape[0] % len(ours):
            raise ValueError(
                f"{file.path}: {name} of shape {tuple(tensor.shape)} cannot be split into {len(ours)} equal parts"
            )
        else:
            named.update(zip(ours, (part.clone() for part in tensor.chunk(len(ours))), strict=True))
        sources.update(dict.fromkeys(ours or (), name))
    return named, sources


def _take_heads(named: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Take the heads' tensors out, by head and by name in the head."""
    heads: dict[str, dict[str, Tensor]] = {}
    for name in [name for name in named if name.startswith(HEADS)]:
        head, _, part = name.removeprefix(HEADS).partition(".")
        heads.setdefault(head, {})[part] = named.pop(name).float()
    return heads


def _fill(
    vlp: VLP,
    named: dict[str, Tensor],
    sources: Mapping[str, str],
    generator: torch.Generator | None,
    report: LoadReport,
) -> None:
    """Give a model on the meta device its parameters and buffers.

    Raises:
        ValueError: a shape does not fit, a frozen parameter is missing, or a layer of the file would be dropped.
    """
    expected = vlp.state_dict()
    device = next(iter(named.values())).device if named else torch.device("cpu")
    lost = [sources.get(name, name) for name in named if name not in expected and re.search(r"\.\d+\.", name)]
    if lost:
        raise ValueError(
            f"{report.path} holds {_short(lost)}, for which a model of these sizes has no place: leave out bottleneck= and "
            "skip_bottleneck= if they are given, or the file is not whole"
        )
    report.unknown += [sources.get(name, name) for name in named if name not in expected]
    state, frozen = {}, []
    for name, wanted in expected.items():
        tensor = named.pop(name, None)
        if tensor is None:
            report.missing.append(name)
            if not any(part in name for part in vlp.tunable):
                frozen.append(name)
            state[name] = torch.empty(0)
            continue
        source = sources.get(name, name)
        if tensor.shape != wanted.shape or not tensor.is_floating_point():
            raise ValueError(
                f"{report.path}: {source} is {tuple(tensor.shape)} {tensor.dtype}, but the model's {name} is "
                f"{tuple(wanted.shape)} floating point"
            )
        state[name] = tensor.float()
    if frozen:
        some = ", ".join(frozen[:5]) + (", ..." if len(frozen) > 5 else "")
        raise ValueError(f"{report.path} lacks {len(frozen)} frozen parameters ({some}); it is not a whole {report.title}")
    for name in report.missing:
        state[name] = _initial(name, expected[name].shape, generator, device)
    vlp.load_state_dict(state, assign=True)
    _restore_buffers(vlp, device)


def _initial(name: str, shape: torch.Size, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A parameter as the reference starts it: N(0, 0.02), biases 0, LayerNorm weights 1."""
    if name.endswith(".bias"):
        return torch.zeros(shape, device=device)
    if name.endswith(".norm.weight"):
        return torch.ones(shape, device=device)
    if device.type == "meta":
        return torch.empty(shape, device=device)
    return torch.empty(shape, device=device).normal_(std=0.02, generator=generator)


def _restore_buffers(vlp: VLP, device: torch.device) -> None:
    """Position and type ids of transformers' embeddings, which no checkpoint has to hold."""
    for name, buffer in list(vlp.named_buffers()):
        owner, _, key = name.rpartition(".")
        ids = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone()
        vlp.get_submodule(owner).register_buffer(
            key, torch.zeros_like(ids) if key == "token_type_ids" else ids, persistent=False
        )
