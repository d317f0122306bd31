"""Which files were written by this person: a run folder from elsewhere does not choose what is imported, run or written.

A key in the cache folder, readable by its owner alone, signs what must not come from others: the settings of runs, and
agents of Stable-Baselines3, which are pickles. What is signed by it is known; anything else has to be typed, or trusted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from das_gym.data.cache import cache_folder
from das_gym.files import read_bytes
from das_gym.runs import CONFIG

KEY = "origin.key"

SIGNATURE = ".signature"
"""The file of a run folder that holds the signature of its settings."""

KNOWN_PACKAGES = ("das_gym", "stable_baselines3", "sb3_contrib", "gymnasium")
"""Whose classes may be named by any record."""

CAREFUL = ("use", "out", "start_from", "encoder_cache", "trust", "trust_remote_code", "tensorboard_log", "workers")
"""Settings that say what is imported, run or written to."""

NAMING = ("env_id", "agent", "agents", "baselines")
"""Settings whose text names a module wherever it has a colon: Gymnasium and Python import what stands before it."""


def sign(content: bytes) -> str:
    """The signature of a file's content by this person's key, which is made where there is none; empty if it cannot be."""
    key = _key() or _new_key()
    return "" if key is None else hmac.new(key, content, hashlib.sha256).hexdigest()


def is_signed(content: bytes, signature: str) -> bool:
    """Whether `sign` gave that for the content, under this person's key."""
    key = _key()
    return key is not None and hmac.compare_digest(
        hmac.new(key, content, hashlib.sha256).hexdigest().encode(), signature.encode("utf-8", "replace")
    )


def begun_here(folder: Path) -> bool:
    """Whether this person began a run, and its settings are as they were."""
    try:
        content, lines = read_bytes(folder / CONFIG), read_bytes(folder / SIGNATURE).decode("utf-8", "replace").split()
    except (OSError, ValueError):
        return False
    return any(is_signed(content, line) for line in lines)


def signatures(folder: Path, settings: str) -> str:
    """What `SIGNATURE` holds while `settings` take the place of a run's: their signature and, below, that of those there.

    A run that is stopped between the two files is known by the one or the other.
    """
    there = [sign(read_bytes(folder / CONFIG))] if begun_here(folder) else []
    return "\n".join(dict.fromkeys([sign(settings.encode()), *there]))


def _key() -> bytes | None:
    try:
        key = (cache_folder() / KEY).read_bytes()
    except OSError:
        return None
    return key if len(key) == 32 else None


def _new_key() -> bytes | None:
    """A new key, or the one that another process has made meanwhile; None where the cache folder cannot be written to."""
    path = cache_folder() / KEY
    part = path.with_name(f".{KEY}.{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)  # fails where there is one
        except OSError:  # also where the file system knows no links
            if _key() is None:  # else there is one, and whole
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError:
        return None
    return _key()


def unknown_modules(modules: Iterable[str]) -> list[str]:
    """Those that a record may not choose to import: neither of a known package nor imported before."""
    return [name for name in modules if name not in sys.modules and name.partition(".")[0] not in KNOWN_PACKAGES]


def check_modules(modules: Iterable[str], source: object) -> None:
    """Refuse a record that would choose what is imported.

    Args:
        modules: What it names.
        source: The record.

    Raises:
        ValueError: a module that is neither of a known package nor imported before.
    """
    unknown = unknown_modules(modules)
    if unknown:
        raise ValueError(
            f"{source} asks for the module {', '.join(map(repr, unknown))}, and a file does not choose what is imported: "
            f"if you trust it, add use={','.join(unknown)} (in Python, import it first)"
        )


def check_record(folder: Path, source: object, modules: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Refuse what a record would have imported, run or written, unless it lies in a run that this person began.

    Args:
        folder: Where it lies.
        source: The record.
        modules: Modules that it names.
        settings: Settings that it brings along and that nobody typed.

    Raises:
        ValueError: a module that is neither known nor imported, or a setting of `CAREFUL`.
    """
    if begun_here(folder):
        return
    check_modules(modules, source)
    careful = [f"{name}={value}" for name, value in careful_settings(settings).items()]
    if careful:
        raise ValueError(
            f"{source} was not made here, and says what is imported, run or written to: {', '.join(careful)}; "
            "if you trust it, give that yourself, or take it out of the file"
        )


def module_of(name: str) -> list[str]:
    """The module that is imported for "module:name", such as an environment's id or an agent; none for a plain name."""
    module, colon, _ = name.partition(":")
    return [module] if colon else []


def modules_in(settings: Any, name: str = "") -> list[str]:
    """Modules that settings name, in mappings and lists too: by `use`, and as "module:name".

    Args:
        settings: By name; or the value of one.
        name: Of that one.
    """
    if isinstance(settings, Mapping):
        return [module for key, value in settings.items() for module in modules_in(value, str(key))]
    if isinstance(settings, list | tuple):
        return [module for each in settings for module in modules_in(each, name)]
    if not isinstance(settings, str):
        return []
    if name == "use":
        return settings.split(",") if settings else []
    return module_of(settings) if name in NAMING or re.fullmatch(r"[\w.]+:[\w.-]+", settings) else []


def careful_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, in mappings too, that say what is imported, run or written to: by dotted name."""
    return {name: value for name, value in _flat(settings) if _is_careful(name.rpartition(".")[2], value)}


def _is_careful(name: str, value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(careful_settings(value))
    if isinstance(value, list | tuple):
        return any(_is_careful(name, each) for each in value)
    return bool(value) if name in CAREFUL else bool(unknown_modules(modules_in(value, name)))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
