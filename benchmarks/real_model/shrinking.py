"""Search, remove and repair layers of the real model in one run of `python -m adapt shrink`, as in docs/real_model.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from das_gym.adapt.run_commands import shrink as shrink_command

from benchmarks.real_model.prepare import WINDOW
from das_gym.commands.commandline import read_settings

SETTINGS: dict[str, dict[str, Any]] = {
    "text": {
        "problem.context": WINDOW,
        "train.steps": 70,
        "train.batch_size": 4,
        "search.evaluations": 90,
    },
    "answering": {
        "train.steps": 100,
        "train.batch_size": 8,
        "search.evaluations": 36,
        "search.reward_examples": 48,
        "test_examples": 150,
    },
}
"""The settings of a task, besides the repair by linear maps and LoRA."""


def shrink(folder: Path, task: str, further: Sequence[str]) -> None:
    """Shrink SmolLM2 on the texts of `mixed`, or SmolVLM-135M on its generated questions, and print the table.

    Args:
        folder: Of the model and the texts; the run is kept in its `runs`.
        task: `text` or `answering`.
        further: Other settings, as typed after `with`: `macs_saved=0.3`, `search.agent=random`, `seed=1`, ...
    """
    data = {"checkpoint": str(folder / "smollm2"), "data_root": str(folder / "mixed")}
    if task == "answering":
        data = {"checkpoint": str(folder / "smolvlm135m")}
    values, named = read_settings(further)
    settings = {"runs_dir": str(folder / "runs"), "task": task, "recover": "linear+lora", **data, **SETTINGS[task], **values}
    shrink_command.run(settings, named)
