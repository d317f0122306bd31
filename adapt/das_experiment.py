"""The paper's pipeline in one run: search while adapters train, fine-tune the found subnet, evaluate it.

python -m adapt das                                  METER-mini on Shapes-VQA, with our settings
python -m adapt das with meter_nlvr2 paper           with the paper's settings for that model and task
python -m adapt das with paper checkpoint=meter_clip16_288_roberta_pretrain.ckpt data_root=/data/vqa tokenizer=...
python -m adapt das with resume=7                    continue run 7, which was stopped
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np
from das_gym.adapt.finetuning import copy_model
from das_gym.adapt.finished_runs import JOINT_RECORD
from das_gym.adapt.joint_search import JointTurn, Training, finetune_subnet, joint_search, new_model, phases
from das_gym.adapt.phases import evaluation_phases
from das_gym.adapt.report import (
    BASELINE,
    FULL_MODEL,
    SUBNET,
    baseline_model,
    command_record,
    compare_models,
    finish_subnet_run,
    limit_test,
    subnet_report,
    write_answers,
)
from das_gym.adapt.settings import JointSearchSettings
from das_gym.adapt.training import Log, add_prefix
from das_gym.agents.ask_tell.bandit import Bandit
from torch import Tensor

from das_gym.commands.commandline import format_command, format_settings
from das_gym.commands.progress import Phase, print_estimate
from das_gym.commands.recorded import Run, required_folder
from das_gym.data.splits import Splits
from das_gym.drawing.report import Heat, Progress
from das_gym.files import write_json
from das_gym.models.random_states import accelerators_of, random_states, restore_random_states
from das_gym.names import format_count
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.budget import Budget
from das_gym.problem.config import format_problem
from das_gym.problem.loading import AdaptedModel, check_prompts, load_splits
from das_gym.problem.mask_space import MaskSpace, skipped_names
from das_gym.processes import is_main_process, run_on_main_process

SEARCH_RECORD = "found.json"
"""The found mask, the layers that it skips, and the turns of the search."""

SUPERNET_FILE = "supernet.safetensors"
"""The model that trained while masks were searched, as `python -m adapt supernet` writes one."""

LOG_NAMES = {SUBNET: "finetune", FULL_MODEL: "finetune_full_model"}
"""Under which name the training of each model is logged, and its checkpoint kept."""


@dataclass(frozen=True)
class UntrainedModel:
    """The untrained model, its data, and the random states from which its copies are trained (`random_states`)."""

    model: AdaptedModel
    splits: Splits[Any]
    random_states: list[Tensor]

    @classmethod
    def load(cls, settings: JointSearchSettings) -> Self:
        """Load what the settings name; ValueError where it does not suit the pipeline."""
        pipeline = settings.pipeline
        splits = load_splits(settings.recipe_problem)
        model = new_model(settings.recipe_problem, splits, pipeline, settings.seed)
        states = random_states(accelerators_of([model.backbone.vlp]))
        n_layers = len(model.backbone.vlp.layers)
        if pipeline.skip_num > n_layers:
            raise ValueError(
                f"`das.skip_num` is out of range: got {pipeline.skip_num}, expected 0..{n_layers}, the layers of the model"
            )
        if pipeline.itm_weight:
            model.task.matching_loss(model.backbone.heads)
        check_prompts(model, splits)
        return cls(model, splits, states)

    def copy(self) -> AdaptedModel:
        """Return a copy of the model, and restore the random states."""
        # Each training draws the random numbers that it would draw if it had loaded the model itself.
        restore_random_states(accelerators_of([self.model.backbone.vlp]), self.random_states)
        return copy_model(self.model)


def run_pipeline(settings: JointSearchSettings, run: Run) -> float | None:
    """Search, fine-tune, evaluate and save; the test metric of the subnet is the result."""
    problem = settings.recipe_problem
    pipeline = settings.pipeline
    untrained = UntrainedModel.load(settings)
    if settings.estimate:
        print_estimate(_estimated_phases(settings, untrained))
        return None
    folder = required_folder(run)
    found = _search(settings, untrained, folder, run.log_scalar)
    mask = np.array(found["mask"], dtype=bool)
    nothing = np.zeros_like(mask)
    models = {SUBNET: _finetune(settings, untrained, SUBNET, mask, folder, run.log_scalar)}
    if settings.references:
        models[FULL_MODEL] = _finetune(settings, untrained, FULL_MODEL, nothing, folder, run.log_scalar)
    # Training was divided among processes; evaluation is not.
    if not is_main_process():
        return 0.0
    full = models[FULL_MODEL] if settings.references else untrained.copy()
    if not settings.references:
        full.backbone.vlp.prune(nothing)
        full.backbone.vlp.freeze()
    models[BASELINE] = baseline_model(full)
    splits = limit_test(untrained.splits, full.task, settings.test_examples)
    rows = compare_models(models, splits, settings.rank_images, untrained=[BASELINE])
    report = subnet_report(rows, problem, "searched while adapters trained, then fine-tuned", models[SUBNET])
    report = dataclasses.replace(report, **search_charts(found["turns"]))
    write_answers(folder, rows, full.task, splits.test)
    info = dataclasses.asdict(pipeline)
    content = {"format": "das_gym das 1", "pipeline": info, "search": found}
    record = {**command_record(settings, rows, splits, report), **content}
    report.print()
    finish_subnet_run(run, folder, models[SUBNET], info, record, JOINT_RECORD)
    if not pipeline.projector_learning_rate:  # a supernet does not include a projector
        words = "bayes", f"skip_num={pipeline.skip_num}", *format_settings({"supernet": str(folder / SUPERNET_FILE)})
        search = format_command("agents", format_problem(problem, *words))
        print(f"a longer search on the trained adapters: {search}")
    return rows[SUBNET].metric


def _estimated_phases(settings: JointSearchSettings, untrained: UntrainedModel) -> list[Phase]:
    training = Training(untrained.copy(), untrained.splits, settings.pipeline, settings.seed, settings.train)
    splits = limit_test(untrained.splits, untrained.model.task, settings.test_examples)
    models = 1 + settings.references
    # The baseline is timed, too.
    evaluation = evaluation_phases(untrained.copy(), splits, settings.rank_images, models, timed=models + 1)
    return [*phases(training, untrained.splits, models), *evaluation]


def search_charts(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the charts of a report: rewards and skip probabilities over the turns."""
    rewards = [reward for turn in turns for reward in turn["rewards"]]
    probabilities = [[1 / (1 + math.exp(-g)) for g in turn["preferences"]] for turn in turns if turn["preferences"]]
    progress = Progress(rewards, list(accumulate(rewards, max))) if rewards else None
    return {"progress": progress, "heat": Heat.from_turns(probabilities)}


def _search(settings: JointSearchSettings, untrained: UntrainedModel, folder: Path, log: Log) -> dict[str, Any]:
    """Return the content of `SEARCH_RECORD`. A search that had ended when the run was stopped is logged again."""
    pipeline = settings.pipeline
    model = untrained.copy()
    names = tuple(layer.name for layer in model.backbone.vlp.layers)
    space = MaskSpace(Budget(len(names), pipeline.skip_num))
    training = Training(model, untrained.splits, pipeline, settings.seed, settings.train)
    mask, turns = joint_search(
        training,
        untrained.splits,
        Bandit(space, settings.seed, learning_rate=pipeline.update_rate),
        folder / "search.pt",
        add_prefix("search", log),
        partial(_print_turn, names),
        settings.save_every,
    )
    skipped = skipped_names(names, mask)
    found = {"mask": mask.astype(int).tolist(), "skipped_layers": skipped, "turns": [vars(turn) for turn in turns]}
    if is_main_process():
        model.adaptation(kind="supernet", **dataclasses.asdict(pipeline)).save(folder / SUPERNET_FILE)
        write_json(folder / SEARCH_RECORD, found)
    # All processes train the same mask, once the main one has written the supernet.
    found = run_on_main_process(lambda: found)
    print(f"found after {format_count(len(turns), 'turn')}: skip {', '.join(skipped) or 'nothing'}")
    return found


def _finetune(
    settings: JointSearchSettings, untrained: UntrainedModel, name: str, mask: np.ndarray, folder: Path, log: Log
) -> AdaptedModel:
    """Return a model without the layers of a mask, trained as the settings say; a stopped training continues."""
    model = untrained.copy()
    pipeline = settings.pipeline
    if pipeline.finetune_from == "search":
        Adaptation.load(folder / SUPERNET_FILE).apply(model.backbone.vlp, model.head, model.backbone.base)
    model.backbone.vlp.prune(mask)
    training = Training(model, untrained.splits, pipeline, settings.seed, settings.train)
    checkpoint = folder / f"{LOG_NAMES[name]}.pt"
    finetune_subnet(training, checkpoint, add_prefix(LOG_NAMES[name], log), settings.save_every, name)
    model.backbone.vlp.freeze()
    return model


def _print_turn(names: Sequence[str], turn: JointTurn) -> None:
    print(f"step {turn.step}")
    for mask, loss in sorted(zip(turn.masks, turn.losses, strict=True), key=lambda scored: scored[1]):
        print(f"  loss {loss:.4f} without {', '.join(skipped_names(names, np.array(mask, bool))) or 'nothing'}")
