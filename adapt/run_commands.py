"""The commands of `python -m adapt` that keep runs: settings are checked before torch and what runs are imported."""

from typing import Any

from das_gym.adapt.settings import AdaptSettings, JointSearchSettings, SupernetSettings
from das_gym.agents.settings import agent_configs

from das_gym.commands.recorded import RecordedCommand
from das_gym.commands.runs import find_run
from das_gym.problem.config import check_before_loading
from das_gym.processes import world_size
from das_gym.registration import MODELS, named_problems


def answering_configs() -> dict[str, dict[str, Any]]:
    """Return the named configs of problems whose model answers in words, as `shrink` needs it."""
    return {name: each for name, each in named_problems().items() if MODELS[each["model"]].reads_prompts}


def check_problem(settings: Any) -> None:
    """Check model and data without loading them, and that the units can be trained."""
    check_before_loading(settings.problem)
    _check_trainable(settings)


def check_das(settings: JointSearchSettings) -> None:
    """See `check_problem`; the settings of the pipeline are checked, too."""
    check_before_loading(settings.problem, vars(settings.pipeline))
    _check_trainable(settings)


def _check_trainable(settings: Any) -> None:
    for name, value in (("units", "sublayers"), ("vision", True)):
        if getattr(settings.problem, name) == value:
            raise ValueError(f"`{name}`={value} has no adapters to train: leave it out here, or search with it (`agents`)")


def check_comparison(settings: Any) -> None:
    """Check model and data without loading them, and settings of the methods."""
    if settings.removes_layers:
        if world_size() > 1:
            raise ValueError("layers are removed and recovered in one process: start this without `accelerate launch`.")
        check_before_loading(settings.removal.problem, vars(settings.removal))
        _check_leaves_a_layer(settings.removal)
        return
    check_problem(settings)
    if settings.method_settings:
        from das_gym.adapt.methods.base import make_method  # imports torch

        for name, own in settings.method_settings.items():
            make_method(name, own)
    counts = settings.problem.unit_counts
    if counts is not None:
        settings.check_skip_nums(counts[-1])


def check_adapt(settings: AdaptSettings) -> None:
    """Raise for a missing supernet; no model is loaded. The problem of `search_run` is read later."""
    _check_trainable(settings)
    check_choice(settings)
    if settings.search_run is None:
        _ = settings.problem.supernet_path


def check_choice(settings: Any) -> None:
    """Check that the run of `search_run` exists, or else model, data and budget, without loading them."""
    if settings.search_run is not None:
        find_run(settings.runs_dir, settings.search_run)
    else:
        check_before_loading(settings.problem, vars(settings.search))


def check_shrink(settings: Any) -> None:
    """See `check_choice`; a layer has to stay."""
    check_choice(settings)
    if settings.search_run is None:
        _check_leaves_a_layer(settings)


def _check_leaves_a_layer(settings: Any) -> None:
    """Raise ValueError if `skip_num` leaves no layer of the decoder, or of the vision tower."""
    counts = settings.problem.unit_counts
    kept = 2 if settings.problem.vision else 1
    if counts is not None and settings.skip_num is not None and settings.skip_num > counts[-1] - kept:
        part = "attention" if settings.problem.units == "sublayers" else "layer"
        raise ValueError(f"`skip_num` must leave one {part}: got {settings.skip_num}, expected {counts[-1] - kept} or less.")


adapt = RecordedCommand(
    "adapt",
    AdaptSettings,
    "das_gym.adapt.adapt_experiment:adapt",
    lambda: {**named_problems(), **agent_configs()},
    check_adapt,
)
das = RecordedCommand(
    "adapt das",
    JointSearchSettings,
    "das_gym.adapt.das_experiment:run_pipeline",
    lambda: {**named_problems(), "paper": {"recipe": "paper", "rank_images": None}},
    check_das,
)
compare: RecordedCommand[Any] = RecordedCommand(
    "adapt compare",
    "das_gym.adapt.compare.settings:CompareSettings",
    "das_gym.adapt.compare_experiment:compare",
    named_problems,
    check_comparison,
)
supernet = RecordedCommand(
    "adapt supernet", SupernetSettings, "das_gym.adapt.supernet_experiment:supernet", named_problems, check_problem
)
shrink: RecordedCommand[Any] = RecordedCommand(
    "adapt shrink",
    "das_gym.adapt.shrinking.settings:ShrinkSettings",
    "das_gym.adapt.shrink_experiment:shrink_in_run",
    lambda: {**answering_configs(), **agent_configs()},
    check_shrink,
)
