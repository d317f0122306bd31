"""Search the whole front once: for every budget the mask of least loss.

    python -m agents pareto with vlm_answering                      400 masks of the bundled model, MACs against loss
    python -m agents pareto with vilt_nlvr2_table evaluations=200   on a table, which knows how much of the front is found
    python -m agents pareto with vlm_answering checkpoint=DIR data_root=DIR dtype=float32
    python -m agents pareto with resume=3                           go on with run 3, which was stopped

A run is kept in runs/<id>/: front.json holds the points of the front and every mask that was scored, front.png draws them.
`python -m adapt with front=<id> point=3` and `python -m adapt shrink with front=<id> point=3` take one of the points.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import agent_class
from das_gym.agents.ask_tell.heuristics import Heuristic
from das_gym.agents.compare.plots import plot_front
from das_gym.agents.pareto.record import RECORD, FrontResult, Scored
from das_gym.agents.pareto.scoring import FrontProblem
from das_gym.agents.pareto.searcher import DRAWN, FrontSearch
from das_gym.agents.search_experiment import ENV_SETTINGS, EnvSettings, SearchSettings
from das_gym.agents.searching.agent_setup import agent_generator, make_search_agent

from das_gym.commandline import typed
from das_gym.config import build, check_names, choice
from das_gym.experiment import Run, RunsExperiment, run_folder
from das_gym.files import read_json, write_json
from das_gym.problem.config import recorded_settings
from das_gym.problem.mask_cost import SAVED
from das_gym.progress import progress
from das_gym.registration import DEFAULT_ENV, MODELS, named_environments
from das_gym.runs import ResumableSettings, runs_dir_words
from das_gym.wording import counted

PICTURE = "front.png"
CHECKPOINT = "front_checkpoint.json"
WIDTH = 80
BASELINES = ("block_influence", "angular", "interlace", "uniform")


@dataclass(frozen=True)
class ParetoSettings(ResumableSettings, EnvSettings):
    """The settings of `python -m agents pareto`.

    Attributes:
        env_id: Id of the environment to search, see `python -m agents list`. Its budget is ignored.
        cost: Cost that is traded off against the loss. Latency is measured on this machine.
        evaluations: Number of masks to score, at least 12. The baselines are scored in addition.
        seed: Random seed of the search, 0..2^32 - 1.
        masks_per_turn: Masks that are scored in one call, at least 1.
        baselines: Agents without a search, each scored at ten budgets, to compare with the front.
        env_kwargs: Further arguments of the environment, as in `env_kwargs.table=FILE`.
    """

    group: ClassVar[str] = "Search"

    env_id: str = DEFAULT_ENV
    cost: str = choice("MACs", tuple(SAVED.values()))
    evaluations: int = 400
    seed: int = 0
    masks_per_turn: int = 8
    baselines: tuple[str, ...] = BASELINES
    env_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names([self.cost], SAVED.values(), "cost")
        for name, least in (("seed", 0), ("evaluations", DRAWN), ("masks_per_turn", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed; give a whole number from {least} on")
        for name in self.baselines:
            if not issubclass(agent_class(name), Heuristic):
                raise ValueError(f"baselines holds {name!r}, which searches; give rules such as {', '.join(BASELINES)}")

    def settings_of_env(self) -> dict[str, Any]:
        """Keyword arguments of the environment, those given by name among them."""
        named = {name: getattr(self, name) for name in ENV_SETTINGS}
        return SearchSettings(env_id=self.env_id, env_kwargs=self.env_kwargs, **named).search_config().env_kwargs

    def problem(self) -> FrontProblem:
        """What is searched."""
        return FrontProblem(self.env_id, self.settings_of_env(), self.cost)


def named_configs() -> dict[str, dict[str, Any]]:
    """Environments and their tables by the word that stands for them."""
    entries = named_environments()
    return {
        **{name: {"env_id": entry.id} for name, entry in entries.items()},
        **{f"{name}_table": {"env_id": entry.tabular_id} for name, entry in entries.items()},
    }


def check(settings: ParetoSettings) -> None:
    """Refuse what the environment would refuse; it is made for that, model and data loaded."""
    settings.problem()


ex = RunsExperiment("agents pareto", save_git_info=False)
ex.add_settings(ParetoSettings, check)
ex.add_named_configs(named_configs)


@ex.main
def search_front(_run: Run, _config: Mapping[str, Any], env_kwargs: Any) -> float | None:
    """Search, draw, print and keep; the front's hypervolume is the result."""
    del env_kwargs  # named so that Sacred lets it hold keys of its own
    settings = build(ParetoSettings, _config)
    problem, folder = settings.problem(), run_folder(_run)
    checkpoint = None if folder is None else folder / CHECKPOINT
    searched = search(problem, settings, checkpoint)
    result = FrontResult(
        settings={name: value for name, value in dataclasses.asdict(settings).items() if name not in ENV_SETTINGS},
        env_id=settings.env_id,
        env_kwargs=recorded_settings(settings.settings_of_env()),
        cost=settings.cost,
        layer_names=problem.layer_names,
        searched=searched,
        baselines={name: baseline(problem, settings, name) for name in settings.baselines},
        hypervolume_share=problem.hypervolume_share(searched),
    )
    record = result.record()
    print_front(result, problem.metric_name)
    if folder is not None:
        write_json(folder / RECORD, record)
        plot_front(folder / PICTURE, result, f"{settings.env_id}, {counted(len(searched.masks), 'mask')} scored")
        for name in (RECORD, PICTURE):
            _run.add_artifact(folder / name)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        print(f"record: {folder / RECORD}\npicture: {folder / PICTURE}")
        then = "adapt" if MODELS[problem.model].reads == "pairs" else "adapt shrink"
        print(f"Next: {typed(then, f'front={folder.name}', 'point=...', runs_dir_words(folder))}")
    return float(record["hypervolume"])


def search(problem: FrontProblem, settings: ParetoSettings, checkpoint: Path | None = None) -> Scored:
    """Spend the evaluations; what was scored, in order.

    Args:
        problem: What is searched.
        settings: How.
        checkpoint: File that is kept while searching, and gone on from where it is there.
    """
    searcher = FrontSearch(problem.n_layers, problem.saved, agent_generator(settings.seed))
    parts: list[Scored] = []
    if checkpoint is not None and checkpoint.is_file():
        parts = [_gone_on(searcher, checkpoint)]
    with progress(settings.evaluations, "searching the front", unit="mask", initial=len(searcher.scored)) as bar:
        while (left := settings.evaluations - len(searcher.scored)) > 0:
            masks = searcher.ask(min(left, settings.masks_per_turn))
            if len(masks) == 0:
                break
            parts.append(problem.score(masks))
            searcher.tell(masks, parts[-1].losses)
            bar.update(len(masks))
            if checkpoint is not None:
                kept = {"scored": Scored.joined(parts).record(), "searcher": searcher.state_dict()}
                write_json(checkpoint, kept, indent=None)
    return Scored.joined(parts)


def _gone_on(searcher: FrontSearch, checkpoint: Path) -> Scored:
    """What was scored before a search was stopped; the searcher is told.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    kept = read_json(checkpoint)
    try:
        scored = Scored.from_record(kept["scored"])
        if scored.masks.shape != (len(scored.losses), searcher.n_layers):
            raise ValueError(f"masks of shape {scored.masks.shape}")
        searcher.tell(scored.masks, scored.losses)
        searcher.load_state_dict(kept["searcher"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{checkpoint} is damaged ({error!r}); begin a new search") from error
    return scored


def baseline(problem: FrontProblem, settings: ParetoSettings, agent: str) -> Scored:
    """The masks that a rule gives at ten budgets, spread evenly up to nine tenths of what can be saved; each once."""
    found, env = {}, (settings.env_id, settings.settings_of_env())
    for share in np.linspace(0.0, 0.9 * problem.max_saved, 11)[1:]:
        space = problem.within(float(share))
        mask = make_search_agent(agent, space, settings.seed, {}, problem.statistics, *env).best()
        found[mask.tobytes()] = mask
    return problem.score(np.array(list(found.values()), dtype=bool))


def drawn(mask: Sequence[bool] | np.ndarray, layer_names: Sequence[str]) -> str:
    """Which layers are kept and which not, kind by kind: `■■□■ ■□□■`."""
    kinds = [name.rpartition(".")[0] for name in layer_names]
    texts = dict.fromkeys(kinds, "") if len(set(kinds)) <= 2 else {"": ""}
    for kind, skipped in zip(kinds, mask, strict=True):
        texts[kind if kind in texts else ""] += "□" if skipped else "■"
    return " ".join(texts.values())


def print_front(result: FrontResult, metric: str) -> None:
    """The points as a table of 80 columns, and what they are."""
    from rich.table import Table

    from das_gym.console import Console

    front = result.front
    table = Table(title=f"{result.env_id}: the front, seed {result.settings['seed']}", title_justify="left")
    for name in ("point", f"{result.cost} saved", "loss", metric.replace("_", " "), "skipped"):
        table.add_column(name, justify="right")
    table.add_column("layers, □ = skipped", overflow="fold")
    for number, mask in enumerate(front.masks):
        table.add_row(
            str(number),
            f"{100 * front.saved[number]:.1f} %",
            f"{front.losses[number]:.4f}",
            f"{100 * front.metrics[number]:.1f} %",
            str(int(mask.sum())),
            drawn(mask, result.layer_names),
        )
    Console(width=WIDTH).print(table)
    beside = sum(len(scored.masks) for scored in result.baselines.values())
    rules = f", and {beside} of {', '.join(result.baselines)}" if result.baselines else ""
    print(textwrap.fill(f"Scored: {counted(len(result.searched.masks), 'mask')} by the search{rules}.", WIDTH))
    if result.hypervolume_share is not None:
        print(f"The search found {100 * result.hypervolume_share:.2f} % of the true front's hypervolume (by the table).")
