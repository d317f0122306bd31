"""`python -m adapt` and its sub-commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from das_gym.commandline import Command, Program


def search_within(settings: dict[str, Any], begun: Callable[[int], object] | None = None) -> int:
    """Run a search as a part of another command, and return its run id.

    Args:
        settings: Of `python -m agents`.
        begun: Called with the id once the search can be resumed.
    """
    from das_gym.agents.search_experiment import ex, run_search

    ex.suggests = False
    ex.begun = None if begun is None else lambda run: begun(int(run))
    try:
        return int(run_search(settings)[0])
    finally:
        ex.suggests, ex.begun = True, None


def search_first(settings: dict[str, Any], then: Callable[[int], str]) -> int:
    """Run a search as the first part of another command, and return its run id.

    Args:
        settings: Of `python -m agents`.
        then: From the id of the search to the command that continues with it, for the message after an interrupt.
    """
    from das_gym.agents.search_experiment import ex

    begun: list[int] = []
    try:
        return search_within(settings, begun.append)
    except KeyboardInterrupt as interrupt:
        for run in begun:
            interrupt.add_note(f"Go on with: {ex.resume_command()}")
            interrupt.add_note(f"and then: {then(run)}")
        raise


def searching_agents() -> dict[str, dict[str, Any]]:
    """Name of every agent to the settings of `python -m agents` that its name alone stands for."""
    from das_gym.agents.ask_tell.base import AGENTS
    from das_gym.agents.sb3.algorithms import ALGORITHMS
    from das_gym.agents.sb3.config import SB3_DEFAULTS

    return {name: {"agent": name, **(SB3_DEFAULTS if name in ALGORITHMS else {})} for name in (*AGENTS, *ALGORITHMS)}


def check_method(name: str, agent_kwargs: Mapping[str, Any]) -> None:
    """Refuse what is no agent, or a hyper-parameter that it does not have.

    Raises:
        ValueError: the reason.
    """
    from das_gym.agents.ask_tell.base import check_agent_kwargs
    from das_gym.agents.sb3.algorithms import ALGORITHMS
    from das_gym.agents.sb3.config import check_agent_name

    check_agent_name(name)
    if name not in ALGORITHMS:
        check_agent_kwargs(name, agent_kwargs)


def paper_bandit(n_layers: int, skip_num: int, seed: int, update_rate: float) -> Any:
    """The paper's agent."""
    from das_gym.agents.ask_tell.bandit import Bandit

    from das_gym.problem.budget import Budget
    from das_gym.problem.mask_space import MaskSpace

    return Bandit(MaskSpace(Budget(n_layers, skip_num)), seed, learning_rate=update_rate)


def _main_experiment() -> Any:
    from das_gym.adapt.adapt_experiment import AdaptExperiment

    return AdaptExperiment(search_first, searching_agents)


def _shrink_experiment() -> Any:
    from das_gym.adapt.shrink_experiment import ShrinkExperiment

    return ShrinkExperiment(search_first, searching_agents, _shrink_compare_experiment)


def _shrink_compare_experiment() -> Any:
    from das_gym.adapt.shrink.compare_experiment import CompareExperiment

    return CompareExperiment(search_within, check_method)


def _compare_experiment() -> Any:
    from das_gym.adapt.compare_experiment import CompareExperiment

    return CompareExperiment(search_first)


def _das_experiment() -> Any:
    from das_gym.adapt.das_experiment import DASExperiment

    return DASExperiment(paper_bandit)


PROGRAM = Program(
    "adapt",
    {
        "run": Command(_main_experiment, "[with ...]", "search a mask, fine-tune it, compare with the baseline"),
        "das": Command(_das_experiment, "[with ...]", "the paper's pipeline: search while adapters train, then fine-tune"),
        "compare": Command(
            _compare_experiment, "[with ...]", "fine-tune by every method (full, LoRA, adapters, DAS, ...), one table"
        ),
        "shrink": Command(
            _shrink_experiment,
            "[compare] with checkpoint=... out=...",
            "delete layers of a model of transformers, recover, save a folder; compare methods",
        ),
        "supernet": Command(
            "das_gym.adapt.supernet_experiment:ex", "[with ...]", "train adapters and head over random masks"
        ),
        "shapes": Command(
            "das_gym.adapt.made_data:main",
            "with out=...",
            "write the generated questions about pictures in VQAv2's format",
            settings="das_gym.adapt.made_data:ShapesSettings",
        ),
        "evaluate": Command(
            "das_gym.adapt.evaluate_command:evaluation_main",
            "with run=... [split=... data_root=... out=...]",
            "score a fine-tuned subnet on any part of any data, and write what it answers",
            settings="das_gym.adapt.evaluate_command:EvaluateSettings",
        ),
        "predict": Command(
            "das_gym.adapt.evaluate_command:prediction_main",
            "with run=... out=... [split=... data_root=...]",
            "write what it answers where nobody's answers are known: VQA's test-dev",
            settings="das_gym.adapt.evaluate_command:EvaluateSettings",
        ),
        "report": Command(
            "das_gym.adapt.run_report:main",
            "RUN... [with out=...]",
            "what runs came to, side by side, as one HTML file",
            settings="das_gym.drawing.command:ReportSettings",
        ),
        "export": Command(
            "das_gym.adapt.export.command:main",
            "with run=... out=...",
            "write a fine-tuned subnet for transformers, or as ONNX",
            settings="das_gym.adapt.export.command:ExportSettings",
        ),
        "convert": Command(
            "das_gym.adapt.convert:main",
            "with source=... out=...",
            "write any checkpoint as safetensors",
            settings="das_gym.adapt.convert:ConvertSettings",
        ),
        "costs": Command(
            "das_gym.adapt.costs_table:main",
            "[with ...]",
            "MACs of METER-base, the table of the paper",
            settings="das_gym.adapt.costs_table:CostsSettings",
        ),
        "paper": Command("das_gym.adapt.paper:main", "", "the paper's settings and tables, ours, each cell's command"),
    },
    main="run",
    examples=(
        ("", "search, fine-tune, compare: bundled model and data, one minute"),
        ("with search_run=3", "fine-tune what search 3 found"),
        ("shrink with checkpoint=DIR data_root=DIR macs_saved=0.2", "a smaller folder of transformers"),
        ("das with meter_vqa paper", "the paper's pipeline with its settings"),
        ("export with run=4 out=DIR", "a fine-tuned subnet for transformers"),
        ("report 4", "what run 4 came to, as a page"),
    ),
    alone=True,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sub-command that the arguments name, and end with its exit code."""
    sys.exit(PROGRAM.run((sys.argv if argv is None else argv)[1:]))
