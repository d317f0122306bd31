"""How the checkpoints of a family of models are read: names of tensors, sizes from shapes, and derived tensors."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from das_gym.models.exporting import ExportedHead, ExportedModel

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
"""Limits of configs: layers; pixels and patches a side of an image; widths of adapters; other widths and vocabularies.

A damaged or hostile config must not build a model of any size.
"""


@dataclass(frozen=True)
class Format:
    """One way to name the tensors of a model.

    Attributes:
        title: Its name in messages.
        marks: Tensors that every such file has and no other format has.
        rules: Pattern of a full name, and our name for it. Several names take equal parts of a packed tensor; None means
            that the original code does not use it either. The first match counts.
        sizes: Returns config fields from shapes and config.json (empty if there is none). Raises ValueError for a file
            that it cannot read.
        prefix: What some files put before every name; marks, rules and sizes do without it.
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
                targets = () if target is None else (target,) if isinstance(target, str) else target
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


REFERENCE_RULES: Rules = (
    (r"token_type_embeddings\.weight", "token_types.weight"),
    (r"itm_score\.fc\.(weight|bias)", rf"{HEADS}itm_score.\1"),
    (r"((?:vqa_classifier|nlvr2_classifier|snli_classifier|rank_output|mlm_score|mpp_score)\..+)", rf"{HEADS}\1"),
)
"""What METER's and ViLT's files have in common."""


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
    """Return adapter widths, if the file has adapters."""
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
        value = getattr(config, each.name)
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
