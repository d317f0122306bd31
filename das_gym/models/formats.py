"""The formats of checkpoints: how those of a family are read, and how a pruned model is written for transformers."""

import dataclasses
import importlib
import json
import math
import re
from collections.abc import Callable, Mapping
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

_IMPORT = re.compile(r"from das_gym\.models\.(?:\w+\.)*(\w+) import")

Target = str | tuple[str, ...] | None
Rules = tuple[tuple[str, Target], ...]
Shapes = Mapping[str, tuple[int, ...]]
Heads = dict[str, dict[str, Tensor]]

HEADS = "heads."
"""Prefix of the names of head tensors, `heads.<head>.<tensor>`."""

MAX_LAYERS = 512
MAX_SIDE = 2**13
MAX_PATCHES = 2**9
MAX_BOTTLENECK = 2**14
MAX_WIDTH = 2**24
"""Limits of configs: a damaged or hostile one must not build a model of any size."""

REFERENCE_RULES: Rules = (
    (r"token_type_embeddings\.weight", "token_types.weight"),
    (r"itm_score\.fc\.(weight|bias)", rf"{HEADS}itm_score.\1"),
    (r"((?:vqa_classifier|nlvr2_classifier|snli_classifier|rank_output|mlm_score|mpp_score)\..+)", rf"{HEADS}\1"),
)
"""What METER's and ViLT's files have in common."""


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
    """Return a pruned model that a class of ours loads; the folder carries `code`, whose first module has the class."""
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
    """Copy modules of `das_gym.models` into a folder, with imports of each other made relative."""
    for module in modules:
        file: Any = importlib.import_module(module).__file__
        code = Path(file).read_text(encoding="utf-8")
        write_text(folder / f"{module.rpartition('.')[2]}.py", _IMPORT.sub(r"from .\1 import", code))


def remove_code_settings(folder: Path) -> None:
    """Remove every setting that names code, or kernels of the Hub, from the settings in a folder and its sub-folders.

    ValueError for NaN or infinity in a file that has to be written again.
    """
    for path in sorted(folder.rglob("*.json")):
        if path.name not in SETTINGS_FILES:
            continue
        try:
            content = read_json(path)
        except ValueError:  # transformers cannot read it either
            path.unlink()
            continue
        plain = _without_code(content)
        if plain == content:
            continue
        try:
            write_json(path, plain, indent=2)
        except ValueError as error:
            raise ValueError(
                f"{path.relative_to(folder)} of the model's folder names code, which has to be removed, and holds NaN or "
                "infinity, which JSON does not have. Replace them by a number or null."
            ) from error


def _without_code(value: Any) -> Any:
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
    return any(isinstance(text, str) and _is_foreign_class(text) for text in texts)


def _is_foreign_class(text: str) -> bool:
    """Return True for a class of another folder or repository, `owner/name--module.Class`; any of these may have spaces."""
    place, dashes, reference = text.rpartition("--")
    parts = [part.strip() for part in reference.split(".")]
    is_template = "{" in text  # of a chat
    return bool(place and dashes) and len(parts) == 2 and all(parts) and not is_template


@dataclass(frozen=True)
class Format:
    """One way to name the tensors of a model.

    Attributes:
        title: Its name in messages.
        marks: Names of tensors by which the format is recognized: all its files have them, other formats do not.
        rules: Pattern of a full name, and our name for it. Several names take equal parts of a packed tensor; None means
            that the original code does not use it either. The first match counts.
        sizes: Returns config fields from shapes and config.json (empty if there is none). Raises ValueError for a file
            that it cannot read.
        prefix: Prefix of all names in some files; marks, rules and sizes are without it.
    """

    title: str
    marks: tuple[str, ...]
    rules: Rules
    sizes: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]
    prefix: str = ""

    def our_names(self, name: str) -> tuple[str, ...] | None:
        """Return our names for a tensor of the file: empty if it is known and unused, None if it is unknown."""
        # A few dozen patterns for a few hundred names: no index is needed, and the order of the rules decides.
        for pattern, target in self.rules:
            match = re.fullmatch(pattern, name.removeprefix(self.prefix))
            if match:
                targets = (target,) if isinstance(target, str) else target or ()
                return tuple(match.expand(t) for t in targets)
        return None


@dataclass(frozen=True)
class Family:
    """A family of models whose checkpoints are read and written.

    Attributes:
        name: Its name in config.json.
        model: Its class; takes a config.
        config: That config's class, a dataclass of numbers.
        formats: The formats of its files, besides our own.
        derive: Adds what can be computed from a file's tensors (under our names) and heads.
        head_fields: Config fields that do not follow from shapes, and the width that each divides into heads.
        fixed_heads: Those of `head_fields` whose heads are 64 wide in small models too.
        export: Puts a pruned model and its head into transformers' form.
    """

    name: str
    model: type[Any]
    config: type[Any]
    formats: tuple[Format, ...]
    derive: Callable[[dict[str, Tensor], Heads, Any], None]
    head_fields: Mapping[str, str]
    export: Callable[[Any, ExportedHead], ExportedModel]
    fixed_heads: tuple[str, ...] = ()


def module_rules(parts: Mapping[str, str], theirs: str = "", ours: str = "") -> Rules:
    """Return rules for modules with weight and bias, or for parameters: our name of each by theirs.

    `theirs` is a pattern before their names and may have one group, the layer's number; `ours` comes before our names.
    """
    group = 1 + re.compile(theirs).groups
    return tuple((rf"{theirs}{re.escape(old)}((?:\.weight|\.bias)?)", rf"{ours}{new}\{group}") for old, new in parts.items())


def adapter_rules(theirs: str, ours: str) -> Rules:
    """Return the rules of an adapter; `theirs` is a pattern with one group, the layer's number."""
    parts = {"adapter_layer_norm_before": "norm", "down_proj": "down", "up_proj": "up"}
    return module_rules(parts, rf"{theirs}\.", f"{ours}.")


def count_modules(shapes: Shapes, prefix: str) -> int:
    """Return how many modules `prefix.0`, `prefix.1`, ... there are; ValueError for a gap."""
    found = {int(m[1]) for name in shapes if (m := re.match(re.escape(prefix) + r"\.(\d{1,4})\.", name))}
    if found != set(range(len(found))):
        raise ValueError(f"incomplete checkpoint: {prefix} has the numbers {sorted(found)}, which have a gap")
    return len(found)


def grid_side(positions: int) -> int:
    """Return the patches of a side, given the number of position embeddings, 1 + side ** 2; ValueError for others."""
    side = math.isqrt(max(positions - 1, 0))
    if side < 1 or side * side + 1 != positions:
        raise ValueError(f"got {positions} image positions, expected a square grid and a class token")
    return side


def adapter_widths(shapes: Shapes, parallel: str, skip: str) -> dict[str, int]:
    """Return `bottleneck` and `skip_bottleneck`, the first sizes of the tensors with these names, for those in the file."""
    found = {"bottleneck": shapes.get(parallel), "skip_bottleneck": shapes.get(skip)}
    return {field: shape[0] for field, shape in found.items() if shape}


def derive_second_image(named: dict[str, Tensor]) -> None:
    """Add the token type of a second image, which pre-training does not have: a copy of the first image's."""
    types = named.get("token_types.weight")
    if types is not None and len(types) == 2:
        named["token_types.weight"] = types[[0, 1, 1]]


def derive_rank_output(heads: Heads) -> None:
    """Add the head that ranks pairs: row 1 of the head that classifies whether text and image match."""
    itm = heads.get("itm_score", {})
    if "rank_output" not in heads and itm.keys() >= {"weight", "bias"}:
        heads["rank_output"] = {part: itm[part][1:2].clone() for part in ("weight", "bias")}


def check_sizes(config: Any, head_fields: Mapping[str, str]) -> None:
    """Check a config, a dataclass of numbers; `head_fields` are names of numbers of heads, and of the width of each."""
    for each in dataclasses.fields(config):
        name = each.name
        value = getattr(config, name)
        low = 1
        if name.endswith("layers"):
            high = MAX_LAYERS
        elif name.endswith("bottleneck"):
            low = 0
            high = MAX_BOTTLENECK
        elif isinstance(each.default, float):
            low = 0
            high = 1
        else:
            high = {"image_size": MAX_SIDE, "position_grid": MAX_PATCHES}.get(name, MAX_WIDTH)
        if value is not None and not low <= value <= high:
            raise ValueError(f"invalid `{name}`: got {value}, expected {low}..{high}")
    for name, width_name in head_fields.items():
        heads = getattr(config, name)
        width = getattr(config, width_name)
        if width % heads:
            raise ValueError(f"invalid `{name}`: got {heads}, expected a divisor of {width_name}={width}")
    size = config.image_size
    patch = config.patch_size
    if size % patch or size // patch > MAX_PATCHES:
        raise ValueError(f"invalid `image_size`: got {size}, expected a multiple of {patch} up to {MAX_PATCHES * patch}")
