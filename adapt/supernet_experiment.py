"""Train a supernet: adapters and head over random masks, so that every mask can be scored.

python -m adapt supernet                                       writes to runs/<id>/supernet.safetensors
python -m adapt supernet with vilt_nlvr2                       of another model, on another task
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

from das_gym.adapt.supernet import SupernetConfig, train_supernet

from das_gym.config import build, part_of
from das_gym.experiment import RunsExperiment, required_folder
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig, problem_words
from das_gym.runs import RUNS_DIR
from das_gym.tasks.labels import write_labels

VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class Settings(SupernetConfig, ProblemConfig):
    """The settings of `python -m adapt supernet`: those of training, of model and data, and these.

    Attributes:
        out: File to write; None is `supernet.safetensors` in the run's folder.
        runs_dir: Folder of all runs.
        resume: Id of a stopped run to go on with, or None.
    """

    out: str | None = None
    runs_dir: str = RUNS_DIR
    resume: int | None = None

    def __post_init__(self) -> None:
        SupernetConfig.__post_init__(self)
        ProblemConfig.__post_init__(self)
        if self.supernet is not None:
            raise ValueError(f"supernet={self.supernet}: this command trains one anew; leave supernet out, or see out=")

    def problem(self) -> ProblemConfig:
        """Model and data."""
        return part_of(ProblemConfig, self)

    def training(self) -> SupernetConfig:
        """The settings of training alone."""
        return part_of(SupernetConfig, self)


ex = RunsExperiment("adapt supernet", save_git_info=False)
ex.add_config(dataclasses.asdict(Settings()))
ex.add_problems()
ex.check_settings(lambda config: build(Settings, config).problem())


@ex.main
def main(_run: Any, _config: Mapping[str, Any]) -> None:
    """Train and write the supernet."""
    settings = build(Settings, _config)
    folder = required_folder(_run)
    out = Path(settings.out) if settings.out else folder / "supernet.safetensors"
    train_supernet(settings.training(), settings.problem(), out, folder / "checkpoint.pt", _run.log_scalar)
    answers = Adaptation.load(out).answers
    if answers:
        write_labels(folder / VOCABULARY, answers)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    print(f"supernet: {out}\nNext: python -m agents with {problem_words(settings.problem(), f'supernet={out}')}")
