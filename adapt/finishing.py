"""The end of a run that fine-tuned a subnet: evaluate its models, write record and adapters, print the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from das_gym.adapt.report import SUBNET, ModelResult, compare, print_report, write_answers
from das_gym.adapt.subnets import SUBNET_FILE, save

from das_gym.config import settings_dict
from das_gym.data.splits import Splits
from das_gym.drawing.architecture import Architecture
from das_gym.plugins import imported_plugins
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, shuffled
from das_gym.tasks.base import Task


def recorded_command(settings: Any) -> dict[str, Any]:
    """Return the settings of a command as its record keeps them: with every module that was imported."""
    return {**settings_dict(settings), "plugins": list(imported_plugins())}


def limit_test(splits: Splits[Any], task: Task, count: int | None) -> Splits[Any]:
    """Return the splits with some of the test examples only; None keeps all."""
    return splits if count is None else dataclasses.replace(splits, test=shuffled(task, splits.test, count))


def finish_run(
    run: Any,
    folder: Path,
    settings: Any,
    models: Mapping[str, AdaptedModel],
    problem: ProblemConfig,
    splits: Splits[Any],
    info: Mapping[str, Any],
    record_name: str,
    untrained: Collection[str] = (),
    from_package: Collection[str] = (),
    artifacts: Sequence[str] = (),
    **content: Any,
) -> dict[str, ModelResult]:
    """Evaluate the models, save the subnet with the record, and print the table; return what was measured."""
    rows, subnet = compare(models, splits, settings.rank_images, untrained, from_package), models[SUBNET]
    write_answers(folder, rows, subnet.task, splits.test)
    record = {
        "settings": recorded_command(settings),
        "models": [row.record() for row in rows.values()],
        "left_out": splits.left_out_count,
        "units": Architecture.of_layers(subnet.backbone.vlp.layers).record(),
        **content,
    }
    path = save(subnet, folder, info, record, record_name)  # the record last: a run with a record is complete
    for checkpoint in folder.glob("*.pt"):
        checkpoint.unlink()
    for name in (SUBNET_FILE, *artifacts, record_name):
        run.add_artifact(folder / name)
    print_report(rows, f"{len(splits.test):,} test examples of {problem.task}, {problem.data_root or 'bundled data'}")
    print(f"record: {path}, adapters: {folder / SUBNET_FILE}")
    return rows
