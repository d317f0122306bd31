"""Train a supernet: adapters and head over random masks, so that every mask can be scored.

python -m adapt supernet                                       writes to runs/<id>/supernet.safetensors
python -m adapt supernet with data_root=/data/vqa              on data of one's own
python -m adapt supernet with checkpoint=... tokenizer=...     on a checkpoint of one's own
python -m adapt supernet with resume=5                         go on with run 5, which was stopped
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.supernet import SupernetConfig, train_supernet
from das_gym.config import build
from das_gym.experiment import RunsExperiment, required_folder
from das_gym.problem import ProblemConfig
from das_gym.runs import RUNS_DIR

PROBLEM_SETTINGS = ("size", "checkpoint", "data_root", "tokenizer", "device")


@dataclass(frozen=True)
class Settings(SupernetConfig):
    """The settings of `python -m adapt supernet`.

    Attributes:
        size, checkpoint, data_root, tokenizer, device: Model and data, as for the environment.
        out: File to write; None is `supernet.safetensors` in the run's folder.
        runs_dir: Folder of all runs.
        resume: Id of a stopped run to go on with, or None.
    """

    size: str | None = None
    checkpoint: str | None = None
    data_root: str | None = None
    tokenizer: str | None = None
    device: str = "auto"
    out: str | None = None
    runs_dir: str = RUNS_DIR
    resume: int | None = None

    def problem(self) -> ProblemConfig:
        """Model and data."""
        return ProblemConfig(**{name: getattr(self, name) for name in PROBLEM_SETTINGS})

    def training(self) -> SupernetConfig:
        """The settings of training alone."""
        return SupernetConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SupernetConfig)})


ex = RunsExperiment("adapt supernet", save_git_info=False)
ex.add_config(dataclasses.asdict(Settings()))
ex.check_settings(lambda config: build(Settings, config).problem())


@ex.main
def main(_run: Any, _config: Mapping[str, Any]) -> None:
    """Train and write the supernet."""
    settings = build(Settings, _config)
    folder = required_folder(_run)
    out = Path(settings.out) if settings.out else folder / "supernet.safetensors"
    train_supernet(settings.training(), settings.problem(), out, folder / "checkpoint.pt", _run.log_scalar)
    given = [
        f"{name}={getattr(settings, name)}" for name in ("checkpoint", "data_root", "tokenizer") if getattr(settings, name)
    ]
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    print(f"supernet: {out}\nNext: python -m agents with {' '.join([*given, f'supernet={out}'])}")
