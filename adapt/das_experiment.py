"""The paper's pipeline in one run: search while adapters train, fine-tune the found subnet, evaluate it.

python -m adapt das                                  METER-mini on Shapes-VQA, with our settings
python -m adapt das with meter_nlvr2 paper           with the paper's settings for that model and task
python -m adapt das with paper checkpoint=meter_clip16_288_roberta_pretrain.ckpt data_root=/data/vqa tokenizer=...
python -m adapt das with resume=7                    go on with run 7, which was stopped
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.adapt_experiment import SUBNET_FILE, compare
from das_gym.adapt.das import Chooser, Training, Turn, finetune_found, joint_search, new_model
from das_gym.adapt.evaluate import RANKED_IMAGES, check_rank_images
from das_gym.adapt.paper import RECIPES, DASSettings, das_settings
from das_gym.adapt.report import print_table
from das_gym.adapt.training import Log, prefixed

from das_gym.commandline import used
from das_gym.config import build
from das_gym.data.splits import Splits
from das_gym.experiment import ProblemSettings, RunsExperiment, required_folder
from das_gym.files import read_json, write_json
from das_gym.problem.loading import ProblemConfig, load_splits
from das_gym.runs import library_versions

RECORD = "das.json"
FOUND = "found.json"

NewChooser = Callable[[int, int, int, float], Chooser]
"""From number of layers, layers to skip, seed and update rate to the chooser."""


@dataclass(frozen=True)
class JointSearchSettings(ProblemSettings):
    """The settings of `python -m adapt das`: those of model and data, these, and in `das` those of the pipeline.

    Attributes:
        recipe: `das_gym` or `paper` (named config `paper`): settings that `das` leaves out, see `das_gym.adapt.paper`.
        das: Fields of `das_gym.adapt.paper.DASSettings` to change, as in `das.search_epochs=1`.
        rank_images: Most test images that retrieval ranks, with all of their texts; None = all, as in the paper.
        seed: Of new parameters, order of examples, masks and dropout.
        save_every: Steps between checkpoints.
    """

    recipe: str = "das_gym"
    das: dict[str, Any] = dataclasses.field(default_factory=dict)
    rank_images: int | None = RANKED_IMAGES
    seed: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank_images(self.rank_images)
        if not 0 <= self.seed < 2**32 or self.save_every < 1:
            raise ValueError(f"seed={self.seed}, save_every={self.save_every}: use 0..{2**32 - 1}, and 1 or more")
        self.pipeline()

    def pipeline(self) -> DASSettings:
        """The settings of the pipeline, every one told."""
        whole = das_settings(self.model, self.task, self.recipe)
        return build(DASSettings, {**dataclasses.asdict(whole), **self.das}, "setting das.")

    def problem(self) -> ProblemConfig:
        """Model and data; the recipe's image size is for a checkpoint of one's own."""
        das = self.pipeline()
        return dataclasses.replace(
            super().problem(),
            max_text_length=self.max_text_length or das.max_text_length,
            image_size=self.image_size or (das.image_size if self.checkpoint else None),
        )


class DASExperiment(RunsExperiment):
    """Needs a chooser from outside, since this package knows nothing of agents.

    Attributes:
        new_chooser: Makes it; the command sets it.
    """

    new_chooser: NewChooser


ex = DASExperiment("adapt das", save_git_info=False)
ex.add_config(dataclasses.asdict(JointSearchSettings()))
ex.add_problems()
ex.add_named_config(RECIPES[1], {"recipe": RECIPES[1], "rank_images": None})
ex.check_settings(lambda config: build(JointSearchSettings, config))


@ex.main
def main(_run: Any, _config: Mapping[str, Any], das: Any) -> float:
    """Search, fine-tune, evaluate and save; the test metric of the subnet is the result."""
    del das  # named so that Sacred lets it hold keys of its own
    settings = build(JointSearchSettings, _config)
    folder, problem = required_folder(_run), settings.problem()
    splits = load_splits(problem)
    mask = _search(settings, problem, splits, folder, _run.log_scalar)
    subnet = new_model(problem, splits, settings.pipeline(), settings.seed)
    subnet.backbone.vlp.prune(mask)
    training = Training(subnet, splits, settings.pipeline(), settings.seed)
    finetune_found(training, folder / "finetune.pt", prefixed("finetune", _run.log_scalar), settings.save_every)
    subnet.backbone.vlp.freeze()
    rows = compare({"subnet": subnet}, splits, settings.rank_images)
    subnet.adaptation(**dataclasses.asdict(settings.pipeline())).save(folder / SUBNET_FILE)
    _save_record(folder, settings, problem, [row.record() for row in rows], splits.left_out_count)
    for name in (SUBNET_FILE, RECORD):
        _run.add_artifact(folder / name)
    print_table(rows, f"{len(splits.test):,} test examples of {problem.task}, {problem.data_root or 'bundled data'}")
    print(f"record: {folder / RECORD}, adapters: {folder / SUBNET_FILE}")
    return rows[0].evaluation.metric


def _search(
    settings: JointSearchSettings, problem: ProblemConfig, splits: Splits[Any], folder: Path, log: Log
) -> np.ndarray:
    """The found mask, from this run's file if it was found before the run was stopped."""
    das = settings.pipeline()
    if not (folder / FOUND).is_file():
        training = Training(new_model(problem, splits, das, settings.seed), splits, das, settings.seed)
        layers = training.model.backbone.vlp.layers
        if das.skip_num > len(layers):
            raise ValueError(f"das.skip_num={das.skip_num}: the model has {len(layers)} layers; use 0..{len(layers)}")
        chooser = ex.new_chooser(len(layers), das.skip_num, settings.seed, das.update_rate)
        mask, turns = joint_search(
            training, splits, chooser, folder / "search.pt", prefixed("search", log), _print_turn, settings.save_every
        )
        names = [layer.name for layer, skipped in zip(layers, mask, strict=True) if skipped]
        found = {"mask": mask.astype(int).tolist(), "skipped_layers": names, "turns": [vars(turn) for turn in turns]}
        write_json(folder / FOUND, found)
    found = read_json(folder / FOUND)
    print(f"found after {len(found['turns'])} turns: skip {', '.join(found['skipped_layers']) or 'nothing'}")
    return np.array(found["mask"], dtype=bool)


def _print_turn(turn: Turn) -> None:
    skipped = ["+".join(map(str, np.flatnonzero(mask))) for mask in turn.masks]
    scored = ", ".join(f"{layers or 'none'}: {loss:.4f}" for layers, loss in zip(skipped, turn.losses, strict=True))
    print(f"step {turn.step}: loss of skipping {scored}")


def _save_record(
    folder: Path, settings: JointSearchSettings, problem: ProblemConfig, models: Sequence[dict[str, Any]], left_out: int
) -> None:
    record = {
        "format": "das_gym das 1",
        "problem": dataclasses.asdict(problem),
        "settings": json.loads(json.dumps({**dataclasses.asdict(settings), "use": used()})),
        "pipeline": dataclasses.asdict(settings.pipeline()),
        "search": read_json(folder / FOUND),
        "models": list(models),
        "left_out": left_out,
        "versions": library_versions(),
    }
    write_json(folder / RECORD, record)
    for name in ("search.pt", "finetune.pt"):
        (folder / name).unlink(missing_ok=True)
