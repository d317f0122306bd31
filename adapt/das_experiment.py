"""The paper's pipeline in one run: search while adapters train, fine-tune the found subnet, evaluate it.

python -m adapt das                                  METER-mini on Shapes-VQA, with our settings
python -m adapt das with meter_nlvr2 paper           with the paper's settings for that model and task
python -m adapt das with paper checkpoint=meter_clip16_288_roberta_pretrain.ckpt data_root=/data/vqa tokenizer=...
python -m adapt das with resume=7                    continue run 7, which was stopped
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from das_gym.adapt.finished_runs import JOINT_RECORD
from das_gym.adapt.joint_search import JointTurn, Training, phases
from das_gym.adapt.phases import evaluation_phases
from das_gym.adapt.pipeline import FINETUNE, SUPERNET_FILE, Pipeline, UntrainedModel
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

from das_gym.commands.commandline import format_command, format_settings
from das_gym.commands.progress import Phase, print_estimate
from das_gym.commands.recorded import Run, required_folder
from das_gym.drawing.report import Heat, Progress
from das_gym.names import format_count
from das_gym.problem.config import format_problem
from das_gym.problem.loading import load_splits
from das_gym.problem.mask_space import skipped_names
from das_gym.processes import is_main_process

FINETUNE_FULL = f"{FINETUNE}_{FULL_MODEL}"
"""Under which name the training of the full model is logged, and its checkpoint kept."""


def run_pipeline(settings: JointSearchSettings, run: Run) -> float | None:
    """Search, fine-tune, evaluate and save; the test metric of the subnet is the result."""
    problem = settings.recipe_problem
    pipeline = settings.pipeline
    splits = load_splits(problem)
    untrained = UntrainedModel.load(problem, splits, pipeline, settings.seed)
    if settings.estimate:
        print_estimate(_estimated_phases(settings, untrained))
        return None
    folder = required_folder(run)
    trainings = Pipeline(untrained, pipeline, settings.seed, settings.train, settings.save_every, folder, run.log_scalar)
    found = trainings.search(partial(_print_turn, [layer.name for layer in untrained.model.backbone.vlp.layers]))
    turns = format_count(len(found.history), "turn")
    print(f"found after {turns}: skip {', '.join(found.skipped_layers) or 'nothing'}")
    nothing = np.zeros_like(found.mask)
    models = {SUBNET: trainings.finetune(found.mask, found.supernet)}
    if settings.references:
        models[FULL_MODEL] = trainings.finetune(nothing, found.supernet, FINETUNE_FULL, FULL_MODEL)
    # Training was divided among processes; evaluation is not.
    if not is_main_process():
        return 0.0
    full = models[FULL_MODEL] if settings.references else untrained.copy()
    if not settings.references:
        full.backbone.vlp.prune(nothing)
        full.backbone.vlp.freeze()
    models[BASELINE] = baseline_model(full)
    splits = limit_test(splits, full.task, settings.test_examples)
    rows = compare_models(models, splits, settings.rank_images, untrained=[BASELINE])
    report = subnet_report(rows, problem, "searched while adapters trained, then fine-tuned", models[SUBNET])
    record_of_search = found.record()
    report = dataclasses.replace(report, **search_charts(record_of_search["turns"]))
    write_answers(folder, rows, full.task, splits.test)
    info = dataclasses.asdict(pipeline)
    content = {"format": "das_gym das 1", "pipeline": info, "search": record_of_search}
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


def _print_turn(names: Sequence[str], turn: JointTurn) -> None:
    print(f"step {turn.step}")
    for mask, loss in sorted(zip(turn.masks, turn.losses, strict=True), key=lambda scored: scored[1]):
        print(f"  loss {loss:.4f} without {', '.join(skipped_names(names, np.array(mask, bool))) or 'nothing'}")
