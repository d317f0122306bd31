"""Load a folder that `python -m adapt export` wrote, without its code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.config import build
from das_gym.files import read_json
from das_gym.models.base import fingerprint
from das_gym.models.checkpoints import load_checkpoint
from das_gym.models.exporting import DAS_GYM
from das_gym.models.quiet import quiet_loading
from das_gym.models.sizes import MAX_SIDE
from das_gym.problem.loading import AdaptedModel, Backbone, pick_device, task_class
from das_gym.runs import PluginSettings
from das_gym.trust import trusted_settings


@dataclass(frozen=True)
class _About:
    """What an exported folder's config.json says to das_gym."""

    task: str
    labels: tuple[str, ...]
    image_size: int
    max_text_length: int
    plugins: Any

    def __post_init__(self) -> None:
        if not (1 <= self.image_size <= MAX_SIDE and 1 <= self.max_text_length <= 2**16):
            raise ValueError(f"image_size={self.image_size!r}, max_text_length={self.max_text_length}")


def is_exported(folder: Path) -> bool:
    """Whether `export` wrote the folder."""
    config = folder / "config.json"
    return config.is_file() and f'"{DAS_GYM}":'.encode() in config.read_bytes()


def load_exported(folder: Path, device: str = "auto", max_text_length: int | None = None) -> AdaptedModel:
    """The subnet in a folder that `export` wrote; none of the folder's code is run.

    Args:
        folder: The folder.
        device: Where the model goes; `auto` is a GPU where there is one.
        max_text_length: Longest text in tokens; None = as in the run.

    Raises:
        ValueError, FileNotFoundError: it is damaged, or of a task that is not registered.
    """
    config = read_json(folder / "config.json")
    about = config.get(DAS_GYM) if isinstance(config, dict) else None
    about = about if isinstance(about, dict) else {}
    lacks = [name for name in ("task", "labels", "image_size", "max_text_length") if name not in about]
    if lacks:
        raise ValueError(f"{folder / 'config.json'} lacks {', '.join(lacks)} under {DAS_GYM!r}; export the run again")
    known = {name: about[name] for name in ("task", "labels", "image_size", "max_text_length")}
    try:
        about = vars(build(_About, {**known, "plugins": about.get("plugins", ())}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged under {DAS_GYM!r} ({error}); export the run again") from error
    trusted_settings(folder, build(PluginSettings, {"plugins": about["plugins"]}).plugins, {})
    loaded = load_checkpoint(folder, image_size=about["image_size"])
    vlp = loaded.vlp
    vlp.freeze()
    with quiet_loading():  # transformers does not know the model's type, and says so when it looks for the tokenizer
        processor = vlp.inputs(folder, max_text_length or about["max_text_length"])
    task = task_class(about["task"])(processor, about["labels"])
    head = task.build_head(vlp.feature_size, vlp.head_size)
    tensors = next(iter(loaded.heads.values()), {})
    named = {name if name[:1].isdigit() else f"0.{name}": tensor for name, tensor in tensors.items()}
    shapes = [{name: tuple(tensor.shape) for name, tensor in some.items()} for some in (head.state_dict(), named)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{folder} holds a head of {shapes[1] or 'nothing'}, the task {task.name} has one of {shapes[0]}: it is "
            "damaged, or the task was changed; export the run again"
        )
    head.load_state_dict(named)
    place, base = pick_device(device), fingerprint(vlp)
    return AdaptedModel(Backbone(vlp.to(place), processor, base, loaded.heads), head.to(place).eval(), task)
