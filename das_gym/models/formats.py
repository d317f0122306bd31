"""What a family says of its checkpoints: names of tensors, sizes from their shapes, and what is computed from others."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from das_gym.models.portable import ToPortable

Target = str | tuple[str, ...] | None
Shapes = Mapping[str, tuple[int, ...]]
Heads = dict[str, dict[str, Tensor]]

HEADS = "heads."
"""Before the names of head tensors, `heads.<head>.<tensor>`."""

SEARCH = "search."
"""Before what a DAS search leaves in its checkpoints: `search.das_gate`, `search.skip_num`."""


@dataclass(frozen=True)
class Format:
    """One way to name the tensors of a model.

    Attributes:
        title: What to call it in messages.
        marks: Tensors that every such file has and no other format has.
        rules: Pattern of a whole name, and our name for it; several names take equal parts of a packed tensor,
            None means that the original never uses it either. The first match counts.
        sizes: Config fields that shapes and config.json (empty = none) tell; raises ValueError for what it cannot read.
        prefix: What some files put before every name; marks, rules and sizes do without it.
        mask: The skipped layers that config.json tells of, one bool a layer; None where nothing was removed.
    """

    title: str
    marks: tuple[str, ...]
    rules: tuple[tuple[str, Target], ...]
    sizes: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]
    prefix: str = ""
    mask: Callable[[Mapping[str, Any]], Sequence[bool] | None] = lambda config: config.get("settled_mask")

    def our_names(self, name: str) -> tuple[str, ...] | None:
        """Our names for a tensor of the file: none where it is a known left-over; None where no rule knows it."""
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
        name: What config.json calls it.
        model: Its class; takes a config.
        config: That config's class, a dataclass of numbers.
        formats: The formats of its files, besides our own.
        derive: Adds what can be computed from a file's tensors (under our names) and heads; says what, and how.
        head_fields: Config fields that no shape tells, and the width that each divides into heads.
        always_told: Those of `head_fields` whose heads are 64 wide in small models too.
        oddities: What is unusual about a config, in words: a file that may have lost something.
        portable: Puts a pruned model and its head into transformers' conventions; None where nobody wrote that.
    """

    name: str
    model: type[Any]
    config: type[Any]
    formats: tuple[Format, ...]
    derive: Callable[[dict[str, Tensor], Heads, Any], list[str]]
    head_fields: Mapping[str, str]
    always_told: tuple[str, ...] = ()
    oddities: Callable[[Any], list[str]] = lambda config: []
    portable: ToPortable | None = None


def adapter_rules(theirs: str, ours: str) -> tuple[tuple[str, Target], ...]:
    """The rules of an adapter; `theirs` is a pattern with one group, the layer's number."""
    parts = (("adapter_layer_norm_before", "norm"), ("down_proj", "down"), ("up_proj", "up"))
    return tuple((rf"{theirs}\.{old}\.(weight|bias)", rf"{ours}.{new}.\2") for old, new in parts)


def linear_rules(theirs: str, ours: str, parts: Mapping[str, str]) -> tuple[tuple[str, Target], ...]:
    """The rules of modules with weight and bias; `theirs` is a pattern with one group, the layer's number."""
    return tuple((rf"{theirs}\.{re.escape(old)}\.(weight|bias)", rf"{ours}.{new}.\2") for old, new in parts.items())


REFERENCE_RULES: tuple[tuple[str, Target], ...] = (
    (r"token_type_embeddings\.weight", "token_types.weight"),
    (r"itm_score\.fc\.(weight|bias)", rf"{HEADS}itm_score.\1"),
    (r"((?:vqa_classifier|nlvr2_classifier|snli_classifier|rank_output|mlm_score|mpp_score)\..+)", rf"{HEADS}\1"),
    (r"(das_gate|skip_num)", rf"{SEARCH}\1"),
)


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


def bottlenecks(shapes: Shapes, parallel: str, skip: str) -> dict[str, int]:
    """Adapter widths, where the file has adapters."""
    found = {"bottleneck": shapes.get(parallel), "skip_bottleneck": shapes.get(skip)}
    return {field: shape[0] for field, shape in found.items() if shape}


def derive_second_image(named: dict[str, Tensor]) -> list[str]:
    """The token type of a second image, which pre-training does not have."""
    types = named.get("token_types.weight")
    if types is None or len(types) != 2:
        return []
    named["token_types.weight"] = types[[0, 1, 1]]
    return ["token_types.weight: row 2 (second image) is a copy of row 1"]


def derive_rank_output(heads: Heads) -> list[str]:
    """The rank output, from the head that tells whether text and image match."""
    itm = heads.get("itm_score", {})
    if "rank_output" in heads or not itm.keys() >= {"weight", "bias"}:
        return []
    heads["rank_output"] = {part: itm[part][1:2].clone() for part in ("weight", "bias")}
    return ["rank_output: row 1 of itm_score"]
