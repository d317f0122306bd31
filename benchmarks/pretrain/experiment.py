"""Pre-train METER-mini, ViLT-mini, SmolVLM-mini or LLaVA-mini.

python -m benchmarks.pretrain                                      METER-mini; writes to runs/<id>/meter_mini
python -m benchmarks.pretrain with model=ViLT                      ViLT-mini; writes to runs/<id>/vilt_mini
python -m benchmarks.pretrain with model=SmolVLM                   SmolVLM-mini; writes to runs/<id>/smolvlm_mini
python -m benchmarks.pretrain with model=LLaVA                     LLaVA-mini; writes to runs/<id>/llava_mini
python -m benchmarks.pretrain with model=ViLT out=my_folder        to a folder of your choice
python -m benchmarks.pretrain with resume=5                        resume run 5
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.pretrain.config import CHECKPOINTS, PretrainConfig
from benchmarks.pretrain.models import ANSWERING_MODELS
from benchmarks.pretrain.recipe import pretrain
from das_gym.commandline import format_command
from das_gym.experiment import RecordedCommand, Run, required_folder
from das_gym.runs import ResumableSettings


@dataclass(frozen=True)
class PretrainSettings(ResumableSettings, PretrainConfig):
    """The settings of `python -m benchmarks.pretrain`.

    Attributes:
        out: Folder to write the checkpoint to. None is a folder of the model's name in the run's folder.
    """

    group: ClassVar[str] = "Pre-training"

    out: str | None = None


def main(settings: PretrainSettings, run: Run) -> None:
    """Pre-train and write the checkpoint."""
    folder = required_folder(run)
    out = Path(settings.out) if settings.out else folder / f"{settings.model.lower()}_mini"
    pretrain(settings, out, folder, run.log_scalar)
    for name in CHECKPOINTS:
        (folder / name).unlink(missing_ok=True)
    print(f"checkpoint: {out}\nNext: {_next(settings.model, out)}")


def _next(model: str, out: Path) -> str:
    """What to do with the checkpoint."""
    if model in ANSWERING_MODELS:
        return f"AutoModelForImageTextToText.from_pretrained({str(out)!r})"
    return format_command("adapt supernet", f"{model.lower()}_vqa", shlex.quote(f"checkpoint={out}"))


ex = RecordedCommand("benchmarks.pretrain", PretrainSettings, main)
