"""The code that a saved folder carries if its model is not one of transformers' own: adapters inserted, or parts removed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from das_gym.files import read_json, write_json, write_text
from das_gym.models.exporting import copy_code
from das_gym.models.transformers.loading import ADAPTED, auto_class
from das_gym.models.transformers.modeling_removed_sublayers import SUBLAYERS

VARIANT = "trust_remote_code"
"""In the names of such a folder's files of weights: `model.trust_remote_code.safetensors`.

Without `trust_remote_code=True`, transformers would load its own class and fill weights that are missing with noise, of
which it only prints a report. It does not look for files of this name, so that it raises.
"""


SETTINGS_FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
)
"""Files in which transformers looks for settings, also in sub-folders; other JSON files hold words of a tokenizer."""

CODE_SETTINGS = ("auto_map", "auto_mapping", "custom_pipelines", "custom_generate", "audio_tokenizer")
"""Settings by which transformers 5.24 and peft 0.19 import modules, or load another folder with the same trust."""

FOREIGN_CODE = re.compile(r"\S*--\S*\.\w+")
"""A class of another folder or repository: `owner/name--module.Class`."""


class OwnCode(NamedTuple):
    """The code of one kind of folders: the modules that are copied, and the class that is added to the first of them.

    The class calls the module's function `change` with the entry `key` of the model's configuration. Its name is that of
    transformers' class with an `ending`.
    """

    key: str
    modules: tuple[str, ...]
    change: str
    ending: str


INSERTED = ("das_gym.models.transformers.modeling_das_adapters", "das_gym.models.adapters")
REMOVED = ("das_gym.models.transformers.modeling_removed_sublayers",)
KINDS = (
    OwnCode(ADAPTED, INSERTED, "add_adapters", "WithAdapters"),
    OwnCode(SUBLAYERS, REMOVED, "remove_sublayers", "WithoutSublayers"),
)

CLASS = '''

from transformers import {base}  # noqa: E402


class {name}({base}):
    """A {base} of transformers, changed as `{key}` of its configuration says."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        {change}(self, config.{key})

    # transformers' own class must not load these weights: it would fill what it misses with noise. So they lie in files
    # that it does not look for.
    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        return super().from_pretrained(*args, **{{"variant": "{variant}", **kwargs}})

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        # transformers translates names of weights to older ones, and back for its own classes alone
        super().save_pretrained(*args, **{{"variant": "{variant}", "save_original_format": False, **kwargs}})
'''
"""The end of the folder's code."""


def own_code(model: Any) -> OwnCode | None:
    """Return the code that a folder of a model needs; None = transformers loads it by itself."""
    return next((kind for kind in KINDS if hasattr(model.config, kind.key)), None)


def write_code(folder: Path, model: Any, code: OwnCode) -> None:
    """Put the code that loads a saved model, see `own_code`, into its folder, and its name into the configuration."""
    base = type(model).__name__  # a class of transformers itself: its own code is not copied
    name, file = f"{base}{code.ending}", folder / f"{code.modules[0].rpartition('.')[2]}.py"
    copy_code(folder, *code.modules)
    text = CLASS.format(base=base, name=name, variant=VARIANT, **code._asdict())
    write_text(file, file.read_text(encoding="utf-8") + text)
    config = read_json(folder / "config.json")
    config["architectures"] = [name]
    config["auto_map"] = {auto_class(model.config).__name__: f"{file.stem}.{name}"}
    write_json(folder / "config.json", config, indent=2)


def remove_code_settings(folder: Path) -> None:
    """Remove every setting that names code, or kernels of the Hub, from a folder's files, and from those in sub-folders."""
    for path in sorted(folder.rglob("*.json")):
        if path.name not in SETTINGS_FILES:
            continue
        try:
            content = read_json(path)
        except ValueError:  # transformers cannot read it either
            path.unlink()
            continue
        plain = _without_code(content)
        if plain != content:
            write_json(path, plain, indent=2)


def _without_code(value: Any) -> Any:
    """Return JSON content without entries that name code, at any depth."""
    if isinstance(value, dict):
        return {name: _without_code(inner) for name, inner in value.items() if not _names_code(name, inner)}
    if isinstance(value, list):
        return [_without_code(inner) for inner in value]
    return value


def _names_code(name: str, value: Any) -> bool:
    """Return True if a setting of a JSON file names code."""
    if name in CODE_SETTINGS:
        return True
    if name.endswith(("_implementation", "_implementation_internal")):  # a kernel, also by part of the model
        return "/" in json.dumps(value)
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and FOREIGN_CODE.fullmatch(text) for text in texts)
