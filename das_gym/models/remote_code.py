"""Code that a saved folder carries, so that transformers loads it where das_gym is not installed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from das_gym.files import write_text

_IMPORT = re.compile(r"from das_gym\.models\.(?:\w+\.)*(\w+) import")


def copy_code(folder: Path, *modules: str) -> None:
    """Copy modules of `das_gym.models` into a folder, with imports of each other made relative.

    They import torch, transformers and each other alone. transformers takes such files along when it loads the first of them
    with `trust_remote_code=True`.
    """
    for module in modules:
        file: Any = importlib.import_module(module).__file__
        code = Path(file).read_text(encoding="utf-8")
        write_text(folder / f"{module.rpartition('.')[2]}.py", _IMPORT.sub(r"from .\1 import", code))
