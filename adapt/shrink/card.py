"""The README.md of a shrunk folder: what was done, from what, with which result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.adapt.shrink.recovery import RecoveryConfig
from das_gym.adapt.shrink.report import Comparison, caption, conclusion, headings, lines_of
from das_gym.adapt.shrink.verifying import Verified

from das_gym.runs import library_versions

TASKS_OF_CLASSES = {"AutoModelForImageTextToText": "image-text-to-text", "AutoModelForCausalLM": "text-generation"}
TRUST = ", trust_remote_code=True"


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        source: The folder that the model comes from.
        auto: The class of transformers that loads it.
        drawn: Which layers went, see `cutting.drawn`.
        gone: Positions of those of the decoder.
        gone_seen: Of those of the vision tower.
        budget: What was asked for, in words.
        recovery: How it was trained.
        trained: How many parameters trained, and on how many examples.
        widths: Of adapters, where there are, see `RecoveryConfig.widths`.
        data: What it was searched, trained and scored on.
        comparison: The result.
        verified: What was checked.
        command: What a person typed.
        brings_code: Whether the source's folder has code of its own, which has to be trusted.
    """

    source: Path
    auto: str
    drawn: str
    gone: Sequence[int]
    gone_seen: Sequence[int]
    budget: str
    recovery: RecoveryConfig
    trained: tuple[int, int]
    widths: tuple[int, int]
    data: str
    comparison: Comparison
    verified: Verified
    command: str
    brings_code: bool = False

    def text(self) -> str:
        """The card."""
        name = called(self.source)
        kinds = {"decoder layers": self.gone, "layers of its vision tower": self.gone_seen}
        lines = dict(zip(kinds, self.drawn.split()[::-1], strict=False))  # one alone where the tower stays
        told = [(len(lines[what]), gone, what) for what, gone in kinds.items() if gone]
        counts = [f"{len(gone)} of {count} {what}" for count, gone, what in told]
        which = [f"{what} {', '.join(map(str, gone))}" for _, gone, what in told]
        versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
        return "\n".join(
            [
                *front_matter(self.source, self.auto, ("pruned",)),
                f"# {name}, without {' and '.join(counts)}",
                "",
                f"Made from `{name}` by das_gym: {' and '.join(which)} (counted from 0) were deleted ({self.budget}). "
                f"{self._training()}",
                "",
                f"    {self.drawn}",
                "",
                conclusion(self.comparison),
                "",
                *self._table(),
                "",
                f"Scored on {self.data}, greedily. Whatever else the model could do before was not measured.",
                "",
                *loading(self.auto, self._code(), TRUST if self.brings_code else ""),
                "",
                "Checked when it was saved: loaded by transformers alone, its logits are those of the full model with these "
                f"layers skipped (apart at most {self.verified.logits_apart:.1e} of the largest), and so is what it "
                f"generates {', '.join(self.verified.ways)}.",
                "",
                f"Command: `{self.command}`",
                "",
                f"Versions: {versions}.",
                "",
            ]
        )

    def _code(self) -> str:
        return TRUST if self.brings_code or self.recovery.recover == "adapters" else ""

    def _training(self) -> str:
        config = self.recovery
        if config.recover == "none":
            return "Nothing was trained."
        how = (
            f"LoRA (rank {config.rank}, alpha {config.alpha:g}, merged)"
            if config.recover == "lora"
            else "all their parameters"
        )
        trained = "What is left, and the projector, was trained"
        if config.recover == "adapters":
            wide, skip = self.widths
            how = f"{wide} wide before attention and MLP, {skip} wide where a layer was deleted"
            trained = "Adapters of DAS (arXiv 2309.01479), and nothing else, were trained"
        which = "the last hidden vectors" if config.hidden_at == "last" else "the hidden vectors behind every layer"
        hidden = "" if config.hidden == "none" else f" + {config.hidden_weight:g} {config.hidden} of {which}"
        return (
            f"{trained} for {config.steps} steps of "
            f"{min(config.batch_size, self.trained[1])} examples: {how}, {self.trained[0]:,} parameters, on "
            f"{self.trained[1]:,} training examples; loss "
            f"{config.distillation:g} KL(full || this) + {config.cross_entropy:g} cross-entropy{hidden}."
        )

    def _table(self) -> list[str]:
        names = headings(self.comparison)
        lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        lines += [f"| {name.strip()} | {' | '.join(cells)} |" for name, cells in lines_of(self.comparison)]
        return [*lines, "", caption(self.comparison)]


def called(folder: Path) -> str:
    """What a model is called: by its name on the Hub where it lies in the cache of that, else by its folder's."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def front_matter(source: Path, auto: str, tags: Sequence[str]) -> list[str]:
    """The first lines of a card: what hubs read.

    Args:
        source: The folder that the model comes from, whose licence is its own.
        auto: The class of transformers that loads it.
        tags: Beside `das_gym`.
    """
    lines = ["---", "library_name: transformers", f"pipeline_tag: {TASKS_OF_CLASSES[auto]}"]
    name, own = called(source), ("license", "license_name", "license_link")
    based = [f"base_model: {name}"] if "/" in name else _of_source(source, ("base_model",))
    lines += [*_of_source(source, own), *based, "tags:", "- das_gym"]
    return [*lines, *(f"- {tag}" for tag in tags), "---", ""]


def loading(auto: str, more: str = "", processor_more: str = "") -> list[str]:
    """How a folder is loaded: by which class, and with which arguments more, of the model and of its processor."""
    return [
        "```python",
        f"from transformers import {auto}, AutoProcessor",
        "",
        f'model = {auto}.from_pretrained("path/of/this/folder", dtype="auto"{more})',
        f'processor = AutoProcessor.from_pretrained("path/of/this/folder"{processor_more})',
        "```",
    ]


def _of_source(source: Path, names: Sequence[str]) -> list[str]:
    """Plain lines of the front matter of the source's own card."""
    path = source / "README.md"
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    front: Any = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    lines = front.group(1).splitlines() if front else []
    return [line for line in lines if re.match(rf"({'|'.join(names)}): \S", line)]
