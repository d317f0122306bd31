"""Load a folder that `python -m adapt export` wrote, without running its code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from das_gym.config import build
from das_gym.files import explain_damage, read_json
from das_gym.models.base import fingerprint
from das_gym.models.checkpoints import load_checkpoint
from das_gym.models.formats import MAX_SIDE
from das_gym.models.quiet import quiet_loading
from das_gym.models.tensor_files import METADATA_KEY
from das_gym.problem.loading import AdaptedModel, Backbone, pick_device, task_class
from das_gym.trust import trusted_settings


@dataclass(frozen=True)
class _ExportedConfig:
    """What `load_exported` reads in config.json; the sizes are bounded, since the folder may come from anyone."""

    task: str
    labels: tuple[str, ...]
    image_size: int
    max_text_length: int
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (1 <= self.image_size <= MAX_SIDE and 1 <= self.max_text_length <= 2**16):
            raise ValueError(f"image_size={self.image_size!r}, max_text_length={self.max_text_length}")


def is_exported(folder: Path) -> bool:
    """Return whether `export` wrote the folder."""
    config = folder / "config.json"
    return config.is_file() and f'"{METADATA_KEY}":'.encode() in config.read_bytes()


def load_exported(folder: Path, device: str = "auto", max_text_length: int | None = None) -> AdaptedModel:
    """Return the subnet in a folder that `export` wrote. None of the folder's code is run."""
    config = read_json(folder / "config.json")
    with explain_damage(folder / "config.json", "export the run again"):
        fields = {
            name: value for name, value in config[METADATA_KEY].items() if name in _ExportedConfig.__dataclass_fields__
        }
        about = build(_ExportedConfig, fields)
    trusted_settings(folder, about.plugins, {})
    loaded = load_checkpoint(folder, image_size=about.image_size)
    vlp = loaded.vlp
    vlp.freeze()
    with quiet_loading():  # transformers warns that it does not know the model's type when it looks for the tokenizer
        processor = vlp.inputs(folder, max_text_length or about.max_text_length)
    task = task_class(about.task)(processor, about.labels)
    head = task.build_head(vlp.feature_size, vlp.head_size)
    tensors = next(iter(loaded.heads.values()), {})
    state = {name if name[:1].isdigit() else f"0.{name}": tensor for name, tensor in tensors.items()}
    shapes, wanted = ({name: tuple(t.shape) for name, t in some.items()} for some in (state, head.state_dict()))
    if shapes != wanted:
        raise ValueError(
            f"{folder} holds a head of {shapes or 'nothing'}, the task {task.name} needs {wanted}: it is damaged, or the "
            "task has changed. Export the run again."
        )
    head.load_state_dict(state)
    place, base = pick_device(device), fingerprint(vlp)
    return AdaptedModel(Backbone(vlp.to(place), processor, base, loaded.heads), head.to(place).eval(), task)
