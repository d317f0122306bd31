"""The model card (README.md) of a folder that das_gym wrote: how it was made, its results, and how to load it."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from das_gym.commands.runs import library_versions
from das_gym.drawing.report import Table
from das_gym.models.source_files import is_own_file

KEPT_FIELDS = {
    "license": r"[\w.+ -]{1,100}",
    "license_name": r"[\w.+ -]{1,100}",
    "license_link": r"[\w./-]{1,200}|https://[\w./%#?=&:+-]{1,500}",
    "base_model": r"[\w.-]{1,100}(/[\w.-]{1,100})?",
}
"""Fields of a source's card that Hubs show, and that hold for what is made from it, with the form of their values."""

MAX_FRONT_MATTER = 2**16
"""Bytes of a source's card that are read."""

MAX_NESTING = 20

PIPELINE_TAGS = {"AutoModelForImageTextToText": "image-text-to-text", "AutoModelForCausalLM": "text-generation"}
TRUST_ARGUMENT = ", trust_remote_code=True"


def model_card(front: str, title: str, about: Sequence[str], example: str, results: Table | None, checked: str) -> str:
    """Return the Markdown text of a card. `front` are its first lines, of `front_matter`, and `about` its paragraphs."""
    versions = ", ".join(f"{library} {version}" for library, version in library_versions().items())
    parts = [
        f"# {title}",
        *about,
        f"## Loading\n\n```python\n{example}\n```",
        f"## Results\n\n{'The run has no recorded result.' if results is None else results.markdown()}",
        checked,
        f"Versions: {versions}.\n",
    ]
    # Names of folders, data and metrics may be anything, even HTML.
    return "\n\n".join([front, *(re.sub(r"<(?=[\w/!?])", "&lt;", part) for part in parts)])


def front_matter(tags: Sequence[str], **fields: Any) -> str:
    """Return the first lines of a card, in YAML: the library, other fields, and the tags."""
    content = {"library_name": "transformers", **fields, "tags": list(tags)}
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=math.inf)}---"


def source_front_matter(source: Path, auto: str, tags: Sequence[str]) -> str:
    """Return the first lines of the card of a transformers model, with the license of its source."""
    name = display_name(source)
    kept = kept_fields(source)
    if "/" in name:
        kept["base_model"] = name
    return front_matter(("das_gym", *tags), pipeline_tag=PIPELINE_TAGS[auto], **kept)


def kept_fields(source: Path) -> dict[str, str | list[str]]:
    """Return the fields of a source's card that hold for what is made from it, if their values are what Hubs expect."""
    card = source / "README.md"
    if not is_own_file(card, source):
        return {}
    with card.open("rb") as file:
        text = file.read(MAX_FRONT_MATTER).decode("utf-8", "replace")
    found = re.match(r"---\r?\n(.*?)\n---\s", text, re.DOTALL)
    fields = None if found is None else _parse_yaml(found[1])
    kept: dict[str, str | list[str]] = {}
    for name, pattern in KEPT_FIELDS.items():
        value = fields.get(name) if isinstance(fields, dict) else None
        values = value if isinstance(value, list) else [value]
        if value and all(isinstance(each, str) and re.fullmatch(pattern, each, re.ASCII) for each in values):
            kept[name] = value
    return kept


def _parse_yaml(text: str) -> Any:
    """Return the content of untrusted YAML; None if it is invalid, or has aliases or deep nesting: these can take hours."""
    depth = 0
    try:
        for event in yaml.parse(text):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if isinstance(event, yaml.AliasEvent) or depth > MAX_NESTING:
                return None
        return yaml.safe_load(text)
    except Exception:  # PyYAML raises errors of many kinds for values of a wrong tag
        return None


def display_name(folder: Path) -> str:
    """Return a model's name on the Hub if it lies in the Hub's cache, else its folder's name."""
    # The Hub's cache has models--OWNER--NAME/snapshots/COMMIT.
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        name = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        if re.fullmatch(KEPT_FIELDS["base_model"], name, re.ASCII):
            return name
    return re.sub(r"[\s`]", " ", folder.name)


def loading_example(auto: str, model_options: str, processor_options: str) -> str:
    """Return code that loads a transformers model and its processor."""
    return f"""from transformers import {auto}, AutoProcessor

model = {auto}.from_pretrained("path/of/this/folder", dtype="auto"{model_options})
processor = AutoProcessor.from_pretrained("path/of/this/folder"{processor_options})"""
