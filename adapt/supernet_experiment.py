"""Train a supernet: adapters and head over random masks, so that every mask can be scored.

python -m adapt supernet                                       writes to runs/<id>/supernet.safetensors
python -m adapt supernet with vilt_nlvr2                       of another model, on another task
python -m adapt supernet with data_root=/data/vqa              on data of one's own
python -m adapt supernet with checkpoint=... tokenizer=...     on a checkpoint of one's own
python -m adapt supernet with resume=5                         go on with run 5, which was stopped
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from das_gym.adapt.step_loss import check_training
from das_gym.adapt.supernet import SupernetConfig, train_supernet

from das_gym.commandline import typed
from das_gym.config import build, part_of
from das_gym.experiment import RunsExperiment, required_folder
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemSettings, problem_words
from das_gym.problem.loading import check_prompts, load_backbone, task_class
from das_gym.processes import is_first
from das_gym.tasks.labels import read_labels, write_labels

VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class SupernetSettings(SupernetConfig, ProblemSettings):
    """The settings of `python -m adapt supernet`: those of training, of model and data, and these.

    Attributes:
        out: File to write. None is `supernet.safetensors` in the run's folder.
    """

    group: ClassVar[str] = "Training"

    out: str | None = None

    def __post_init__(self) -> None:
        SupernetConfig.__post_init__(self)
        ProblemSettings.__post_init__(self)
        if self.supernet is not None:
            raise ValueError(f"supernet={self.supernet}: this command trains one anew; leave supernet out, or see out=")

    def training(self) -> SupernetConfig:
        """The settings of training alone."""
        return part_of(SupernetConfig, self)


def check(settings: SupernetSettings) -> None:
    """Load the model and the vocabulary, and refuse what is wrong with them, and prompts that are too long."""
    problem = settings.problem()
    backbone = load_backbone(problem)
    check_training(backbone, task_class(problem.task)(backbone.processor), settings, settings.itm_weight)
    if settings.vocabulary:
        read_labels(settings.vocabulary)
    check_prompts(backbone, problem)


ex = RunsExperiment("adapt supernet", save_git_info=False)
ex.add_settings(SupernetSettings, check)
ex.add_problems()


@ex.main
def main(_run: Any, _config: Mapping[str, Any]) -> None:
    """Train and write the supernet."""
    settings = build(SupernetSettings, _config)
    folder = required_folder(_run)
    out = Path(settings.out) if settings.out else folder / "supernet.safetensors"
    train_supernet(settings.training(), settings.problem(), out, folder / "checkpoint.pt", _run.log_scalar)
    if not is_first():
        return
    answers = Adaptation.load(out).answers
    if answers:
        write_labels(folder / VOCABULARY, answers)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    print(f"supernet: {out}\nNext: {typed('agents', problem_words(settings.problem()), shlex.quote(f'supernet={out}'))}")
