"""The code that a saved folder carries if its model is not one of transformers' own: adapters inserted, or parts removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from das_gym.files import read_json, write_json, write_text
from das_gym.models.formats import copy_code
from das_gym.models.transformers.loading import ADAPTED, auto_class
from das_gym.models.transformers.modeling_removed_sublayers import SUBLAYERS

VARIANT = "trust_remote_code"
"""In the names of such a folder's files of weights: `model.trust_remote_code.safetensors`.

Without `trust_remote_code=True`, transformers would load its own class and fill weights that are missing with noise, of
which it only prints a report. It does not look for files of this name, so that it raises.
"""


class OwnCode(NamedTuple):
    """The code of one kind of folders: the modules that are copied, and the class that is added to the first of them.

    The class calls the module's function `change` with the entry `key` of the model's configuration. Its name is that of
    transformers' class with an `ending`.
    """

    key: str
    modules: tuple[str, ...]
    change: str
    ending: str


REMOVED = ("das_gym.models.transformers.modeling_removed_sublayers",)
INSERTED = ("das_gym.models.transformers.modeling_das_adapters", "das_gym.models.adapters", *REMOVED)
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
    name = f"{base}{code.ending}"
    file = folder / f"{code.modules[0].rpartition('.')[2]}.py"
    copy_code(folder, *code.modules)
    text = CLASS.format(base=base, name=name, variant=VARIANT, **code._asdict())
    write_text(file, file.read_text(encoding="utf-8") + text)
    config = read_json(folder / "config.json")
    config["architectures"] = [name]
    config["auto_map"] = {auto_class(model.config).__name__: f"{file.stem}.{name}"}
    write_json(folder / "config.json", config, indent=2)
