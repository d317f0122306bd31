"""From a folder of weights to a smaller folder that transformers loads by itself, with measured quality and speed.

python -m adapt shrink with checkpoint=DIR data_root=DIR macs_saved=0.2 out=NEW     search, delete, recover, save, check
python -m adapt shrink with checkpoint=DIR data_root=DIR skip_num=3 recover=none    3 layers deleted, nothing trained
python -m adapt shrink with checkpoint=DIR data_root=DIR latency_saved=0.2          or memory_saved, parameters_saved
python -m adapt shrink with search_run=3 out=NEW                                    the mask, model and data of that search
python -m adapt shrink with search_run=5 point=3 out=NEW                            a point of the front of `agents pareto`
python -m adapt shrink with checkpoint=DIR data_root=DIR 'mask=[0,1,0,0]'           a custom mask
python -m adapt shrink with resume=4                                                continue run 4, which was stopped
"""

from dataclasses import asdict, replace
from pathlib import Path

from das_gym.adapt.choosing import Choice, choose, print_remark, search_choice, search_first
from das_gym.adapt.phases import search_first_phases
from das_gym.adapt.report import write_example_answers
from das_gym.adapt.run_report import REPORT, run_report
from das_gym.adapt.shrinking.checks import (
    as_vlm,
    check_config,
    check_loaded,
    fallback_if_not_removable,
    processor_folder,
    weights_folder,
)
from das_gym.adapt.shrinking.measuring import FULL, score_once
from das_gym.adapt.shrinking.phases import checking_phases, measuring_phases, random_mask, recovery_phases, selecting_phase
from das_gym.adapt.shrinking.record import finish_saved, repeat_command, shrink_record
from das_gym.adapt.shrinking.report import describe_layers, measured_table, print_left_out, shrink_report
from das_gym.adapt.shrinking.saving import check_source_files, describe_dtype
from das_gym.adapt.shrinking.settings import PENDING_RECORD, RECORD, SCORED, ShrinkSettings
from das_gym.adapt.shrinking.shrink import Shrunk, shrink, wants_control
from das_gym.adapt.shrinking.verifying import Verification, has_remote_code

from das_gym.commands.progress import Phase, print_estimate
from das_gym.commands.recorded import Run, required_folder, run_folder
from das_gym.drawing.report import write_report
from das_gym.files import check_new_folder, explain_damage, read_json, write_json
from das_gym.problem.config import warn_at_chance
from das_gym.problem.loading import shuffled
from das_gym.problem.problem import Problem, load_problem
from das_gym.processes import is_main_process, run_on_main_process
from das_gym.registration import MODELS


def shrink_in_run(settings: ShrinkSettings, run: Run) -> float | None:
    """Search if no mask is given, delete, recover, save, verify and measure; the saved model's score is the result."""
    kept = run_folder(run)  # None outside the main process
    if run_on_main_process(lambda: kept is not None and settings.is_saved(kept)):
        if kept is None:
            return None
        score = resume_saved(settings, kept)
        _print_report(kept)
        return score
    choice = choose(settings)
    config = settings.problem if choice is None else choice.problem
    if not MODELS[config.model].reads_prompts:
        raise ValueError(f"run {settings.search_run} searched {config.model}, which does not answer in words.")
    check_new_folder(settings.out_folder(Path(settings.runs_dir) / "new"), weights_folder(config))
    check_config(config)
    problem = load_problem(config)
    settings = replace(settings, train=settings.train.for_model(as_vlm(problem)))
    check_loaded(settings, problem, choice)
    if choice is not None:
        choice = fallback_if_not_removable(choice, problem)
    source = weights_folder(config), processor_folder(config)
    print_left_out(check_source_files(as_vlm(problem), *source, has_remote_code(as_vlm(problem))))
    if settings.estimate:
        print_estimate(phases(settings, problem, choice))
        return None
    folder = required_folder(run)
    if choice is None:
        found = search_first(settings.search, run, folder, problem)
        choice = fallback_if_not_removable(search_choice(found, config), problem)
    print_remark(choice)
    small = _shrink_chosen(settings, choice, problem, run, folder)
    if not is_main_process():
        if wants_control(None, None, None):
            small.add_control(None)
        return None
    if small.selection is not None:
        print(small.selection.reason)
    return save_and_report(settings, choice, small, run, folder)


def _shrink_chosen(settings: ShrinkSettings, choice: Choice, problem: Problem, run: Run, folder: Path) -> Shrunk:
    task = problem.task
    test = shuffled(task, problem.splits.test, settings.test_examples)
    # Before hours of recovery, which cannot help a model that answers by chance.
    full = score_once(folder / SCORED, as_vlm(problem), task, test, f"{FULL} model", settings.metric)
    warn_at_chance(choice.problem, task, test, full.quality.score, "test")
    return shrink(
        problem,
        choice.mask,
        save_dtype=settings.save_dtype,
        test_examples=settings.test_examples,
        metric=settings.metric,
        folder=folder,
        log=run.log_scalar,
        **asdict(settings.train),
    )


def save_and_report(settings: ShrinkSettings, choice: Choice, small: Shrunk, run: Run, folder: Path) -> float:
    """Measure, save and verify a smaller model; write card, record and report, and return its score."""
    config = choice.problem
    source = weights_folder(config)
    out = settings.out_folder(folder)
    measured = small.measure(settings.control)
    write_example_answers(
        folder, small.problem.task, small.test, {name: each.texts for name, each in measured.scored.items()}
    )
    command = repeat_command(folder, asdict(config), small.mask.astype(int).tolist())
    report = shrink_report(small, measured, source, out, small.data)

    def keep_record(verified: Verification) -> None:
        record = shrink_record(small, measured, verified, report, settings, config, source, out, command)
        write_json(folder / PENDING_RECORD, record)

    # Card and record are written while the folder has its hidden name: a model that exists has both.
    small.save_pretrained(
        out,
        measured=measured,
        made_by=[f"The mask is {mask_origin(settings)}.", f"Command: `{command}`"],
        names_dtype=settings.save_dtype != "auto",
        on_verified=keep_record,
    )
    # Rename the record last: if the run stops before that, resuming it only renames.
    finish_saved(folder)
    measured_table(measured, small.data).print()
    print(f"layers: {describe_layers(small)}")
    print(f"weights: {describe_dtype(small.source_dtype, small.full.model.dtype, settings.save_dtype, 'save_dtype')}")
    run.add_artifact(folder / RECORD)
    for row in measured.rows.values():
        for name in ("score", "loss", "parameters", "macs"):
            run.log_scalar(f"{row.name}.{name}", float(getattr(row, name)))
    print(f"record: {folder / RECORD}, model: {out}")
    _print_report(folder)
    return measured.final.score


def mask_origin(settings: ShrinkSettings) -> str:
    """Return where the mask of a run comes from, in words."""
    if settings.point is not None:
        return f"point {settings.point} of the front of run {settings.search_run}"
    if settings.mask is not None:
        return "one that was given"
    return "found by a search" if settings.search_run is None else f"found by search run {settings.search_run}"


def phases(settings: ShrinkSettings, problem: Problem, choice: Choice | None) -> list[Phase]:
    """Return the phases of the run; without a choice, there is a search, and a random mask stands for its answer."""
    config = settings.train
    trains = config.method is not None
    searching = [] if choice is not None else search_first_phases(settings.search, problem)[0]
    mask = random_mask(settings, problem) if choice is None else choice.mask
    recovery = recovery_phases(problem, mask, config)
    found = [*searching, *recovery]
    if trains:
        found.append(selecting_phase(settings, problem, mask))
    found += measuring_phases(settings, problem, mask, recovered=int(config.recover != "none"))
    found += checking_phases(settings, problem)
    if trains and settings.control is not False and recovery:
        longer = problem.costs.macs_full / problem.costs.macs(mask)
        control = replace(recovery[-1], name="control", repeats=recovery[-1].repeats * longer)
        found.append(replace(control, is_certain=settings.control is True))
    return found


def _print_report(folder: Path) -> None:
    print(f"report: {write_report(folder / REPORT, [run_report(folder)])}")


def resume_saved(settings: ShrinkSettings, folder: Path) -> float:
    """Finish a run that was stopped after its model was saved, and return the model's score."""
    finish_saved(folder)
    record = folder / RECORD
    with explain_damage(record, "remove it and the model, and resume again"):
        score = float(read_json(record)["models"][-1]["score"])
    print(f"The model was saved before the run stopped. record: {record}, model: {settings.out_folder(folder)}")
    return score
