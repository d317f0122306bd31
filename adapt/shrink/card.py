"""The README.md of a shrunk folder: what was done, from what, with which result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from das_gym.adapt.shrink.measuring import Measured
from das_gym.adapt.shrink.recovery import RecoveryConfig
from das_gym.adapt.shrink.report import conclusion, table_of
from das_gym.adapt.shrink.verifying import Verification, has_remote_code

from das_gym.models.transformers.loading import auto_class
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stack import IMAGE
from das_gym.models.transformers.units import ATTENTION, MLP
from das_gym.runs import library_versions

PIPELINE_TAGS = {"AutoModelForImageTextToText": "image-text-to-text", "AutoModelForCausalLM": "text-generation"}
TRUST = ", trust_remote_code=True"
ADDED_CODE = (
    "The folder holds the code of its model, which is not one of transformers' own. Without `trust_remote_code=True`, "
    "loading fails on purpose (no file named model.safetensors): transformers' class would fill what it misses with noise."
)


def model_card(
    full: VLM,
    mask: Sequence[bool],
    source: Path,
    origin: str,
    recovery: RecoveryConfig,
    trained: tuple[int, int],
    data: str,
    measured: Measured,
    verified: Verification,
    command: str,
) -> str:
    """Return the text of the card."""
    trusted = TRUST if has_remote_code(full) else ""
    name = display_name(source)
    removed = [("decoder layers", full.removed_layers(mask), len(full.stack.layers))]
    for kind, what in ((ATTENTION, "attentions"), (MLP, "MLPs")):
        places = [place for place, part in full.removed_parts(mask).items() if part == kind]
        removed.append((f"{what} of decoder layers", places, len(full.stack.layers)))
    if full.tower is not None:
        removed.append(("layers of its vision tower", full.removed_layers(mask, IMAGE), len(full.tower.stack.layers)))
    removed = [each for each in removed if each[1]]
    counts = ", ".join(f"{len(places)} of {count} {what}" for what, places, count in removed)
    which = ", ".join(f"{what} {', '.join(map(str, places))}" for what, places, _ in removed)
    auto = auto_class(full.model.config).__name__
    table = table_of(measured)
    adds_code = bool(full.removed_parts(mask)) or (recovery.method is not None and recovery.method.adds_code)
    code = TRUST if adds_code else trusted
    trained_in_memory = "recovered model in memory, run layer by layer"
    compared = "full model with these layers skipped" if recovery.method is None else trained_in_memory
    versions = ", ".join(f"{library} {version}" for library, version in library_versions().items())
    parts = [
        front_matter(source, auto, ("pruned",)),
        f"# {name}, without {counts}",
        f"Made from `{name}` by das_gym: {which} (counted from 0) were deleted ({origin}). "
        f"{_describe_training(recovery, trained, full.feature_size)}",
        conclusion(measured),
        table.markdown(),
        f"Scored on {data} with greedy decoding. Other abilities of the model were not measured.",
        loading_example(auto, code, trusted),
        *([ADDED_CODE] if adds_code else []),
        f"Checked when it was saved: loaded by transformers alone, its logits equal those of the {compared} "
        f"(relative difference {verified.logits_difference:.1e} or less), and so does the text that it "
        f"generates {', '.join(verified.ways)}.",
        f"Command: `{command}`",
        f"Versions: {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


def _describe_training(config: RecoveryConfig, trained: tuple[int, int], width: int) -> str:
    if config.method is None:
        return "Nothing was trained."
    parameters, examples = trained
    return (
        f"{config.method.describe_recovery(width)} ({parameters:,} parameters) trained for {config.steps} steps of "
        f"{min(config.batch_size, examples)} examples, on {examples:,} training examples. The loss is "
        f"{config.distillation:g} KL(full || this) + {config.cross_entropy:g} cross-entropy."
    )


def display_name(folder: Path) -> str:
    """Return a model's name on the Hub if it lies in the Hub's cache, else its folder's name."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def front_matter(source: Path, auto: str, tags: Sequence[str]) -> str:
    """Return the first lines of a card, which hubs read."""
    name, card = display_name(source), source / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    source_lines = found.group(1).splitlines() if found else []
    kept = [line for line in source_lines if re.match(r"(license|license_name|license_link): \S", line)]
    if "/" in name:
        kept.append(f"base_model: {name}")
    else:
        kept += [line for line in source_lines if re.match(r"base_model: \S", line)]
    lines = ["---", "library_name: transformers", f"pipeline_tag: {PIPELINE_TAGS[auto]}", *kept, "tags:", "- das_gym"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def loading_example(auto: str, model_options: str = "", processor_options: str = "") -> str:
    """Return Markdown that shows how to load a folder."""
    return "\n".join(
        [
            "```python",
            f"from transformers import {auto}, AutoProcessor",
            "",
            f'model = {auto}.from_pretrained("path/of/this/folder", dtype="auto"{model_options})',
            f'processor = AutoProcessor.from_pretrained("path/of/this/folder"{processor_options})',
            "```",
        ]
    )
