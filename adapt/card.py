"""The model card (README.md) of a folder that das_gym wrote: how it was made, its results, and how to load it."""

import re
from collections.abc import Sequence
from pathlib import Path

from das_gym.commands.runs import library_versions
from das_gym.drawing.report import Table

PIPELINE_TAGS = {"AutoModelForImageTextToText": "image-text-to-text", "AutoModelForCausalLM": "text-generation"}
TRUST_ARGUMENT = ", trust_remote_code=True"


def model_card(front: str, title: str, about: Sequence[str], example: str, results: Table | None, checked: str) -> str:
    """Return the Markdown text of a card. `front` are its first lines, of `front_matter`, and `about` its paragraphs."""
    versions = ", ".join(f"{library} {version}" for library, version in library_versions().items())
    return "\n\n".join(
        [
            front,
            f"# {title}",
            *about,
            f"## Loading\n\n```python\n{example}\n```",
            f"## Results\n\n{'The run has no recorded result.' if results is None else results.markdown()}",
            checked,
            f"Versions: {versions}.\n",
        ]
    )


def front_matter(source: Path, auto: str, tags: Sequence[str]) -> str:
    """Return the first lines of the card of a transformers model, with the license of its source."""
    name = display_name(source)
    card = source / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    entries = yaml_entries(found.group(1)) if found else {}
    if "/" in name:
        entries["base_model"] = [f"base_model: {name}"]
    # Hubs show these entries, and the license of the source holds for what is made from it.
    kept = [line for key in ("license", "license_name", "license_link", "base_model") for line in entries.get(key, ())]
    lines = ["---", "library_name: transformers", f"pipeline_tag: {PIPELINE_TAGS[auto]}", *kept, "tags:", "- das_gym"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def yaml_entries(text: str) -> dict[str, list[str]]:
    """Return the lines of each top-level entry of a card's YAML by its key, with those of a list below it.

    Entries without a value are left out. The YAML is not parsed: aliases of an untrusted card could take all memory.
    """
    entries: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        key = re.match(r"(\w+):", line)
        if key is not None:
            lines = entries.setdefault(key[1], [])
        lines.append(line.rstrip())
    return {key: lines for key, lines in entries.items() if lines != [f"{key}:"]}


def display_name(folder: Path) -> str:
    """Return a model's name on the Hub if it lies in the Hub's cache, else its folder's name."""
    # The Hub's cache has models--OWNER--NAME/snapshots/COMMIT.
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def loading_example(auto: str, model_options: str, processor_options: str) -> str:
    """Return code that loads a transformers model and its processor."""
    return f"""from transformers import {auto}, AutoProcessor

model = {auto}.from_pretrained("path/of/this/folder", dtype="auto"{model_options})
processor = AutoProcessor.from_pretrained("path/of/this/folder"{processor_options})"""
