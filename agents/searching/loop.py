"""The search loop: an agent chooses masks, the environment scores them, until the budget is spent."""

import math
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import Agent, AgentLike, Statistics, agent_class, answer, ask, make_agent, named_agent
from das_gym.agents.sb3.algorithms import choose_action, find_algorithm, is_algorithm, with_defaults
from das_gym.agents.searching.racing import Race, Raced
from das_gym.agents.searching.record import (
    CHECKPOINT,
    Checkpoint,
    OnTurn,
    SearchProgress,
    SearchResult,
    Turn,
    bind_folder,
    conclude,
    spent,
    with_costs,
)
from das_gym.agents.searching.scorer import open_scorer
from das_gym.agents.settings import SearchConfig, complete_search, search_hyperparameters

from das_gym.commands.progress import progress as progress_bar
from das_gym.commands.progress import show_progress
from das_gym.commands.settings import build
from das_gym.envs.scoring import Scorer
from das_gym.files import explain_damage
from das_gym.models.random_states import kept_random_states
from das_gym.names import brief
from das_gym.problem.budget import Masks, pick_budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.problem import Problem
from das_gym.problem.statistics import STATISTICS


def search(
    problem: Problem | str | SearchConfig,
    agent: AgentLike = SearchConfig.agent,
    *,
    evaluations: int = SearchConfig.evaluations,
    seed: int = 0,
    callback: OnTurn | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> SearchResult:
    """Search for a mask, and return the better of the agent's answer and the best mask that was scored on all examples.

    Args:
        problem: What to search: a `Problem`, or the id of an environment, as of a table. A `SearchConfig` is the whole
            search: then `agent`, `evaluations`, `seed` and `settings` are not read.
        agent: Name of an agent or of an algorithm of Stable-Baselines3; or a subclass of `Agent`, or a function that returns
            one, given `space` and `seed`.
        evaluations: Number of masks that the agent may score.
        seed: Random seed of the agent and of the environment.
        callback: Called with each `Turn` after it; a resumed search first calls it with the turns before.
        folder: Folder for checkpoints and, at the end, `search.json`. A search that was stopped there continues, and ends as
            if it had not been stopped; one that has ended is returned. None keeps nothing.
        progress: Whether to show progress.
        settings: Further settings of `SearchConfig`: a budget (`skip_num`, `macs_saved`, `latency_saved`, ...; 4 units by
            default), `masks_per_turn`, `reward`, ..., and those of the agent; with an id, those of `ProblemConfig` too.

    Returns:
        The result: `mask`, `reward`, `history`, `to_dataframe()`.

    Raises:
        TypeError: An argument is of another type.
        ValueError: A setting is unknown, or not valid for the problem or the agent; the agent asks for masks that are not
            allowed; the folder belongs to another search; or a model in memory was trained since its problem was made.

    Example:
        >>> from das_gym.agents import search
        >>> search("DAS-METER-VQA-Tabular-v0", "bayes", evaluations=30, skip_num=4).n_skipped
        4
    """
    with named_agent(agent) as name, show_progress(progress):
        if isinstance(problem, SearchConfig):
            config = problem
        else:
            config = make_config(problem, {"agent": name, "evaluations": evaluations, "seed": seed, **settings})
        return run_search(config, folder, callback, problem if isinstance(problem, Problem) else None)


def make_config(problem: Problem | str, settings: Mapping[str, Any]) -> SearchConfig:
    """Return the search of a problem, or of the environment with an id; `settings` are those of `search`."""
    if isinstance(problem, str):
        return build(SearchConfig, complete_search({"env_id": problem, **settings}))
    if not isinstance(problem, Problem):
        raise TypeError(
            f"`problem` is not a Problem: got {brief(problem)}, expected das_gym.Problem.from_model(...) or an id"
        )
    for name in settings.keys() & {each.name for each in fields(ProblemConfig)}:
        raise ValueError(f"`{name}` is a setting of the Problem: got {brief(settings[name])}. Give it where that is made")
    origin = problem.backbone.origin
    given = complete_search({"env_id": origin.env_id, **settings})
    given = {name: value for name, value in given.items() if not name.startswith("problem.")}
    return build(SearchConfig, {**given, "problem": origin.config or ProblemConfig()})


def run_search(
    config: SearchConfig,
    folder: str | os.PathLike[str] | None = None,
    callback: OnTurn | None = None,
    problem: Problem | None = None,
) -> SearchResult:
    """Run a search, see `search`; `problem` is the loaded problem of its environment, None loads it."""
    if is_algorithm(config.agent):
        from das_gym.agents.sb3.train import train_sb3

        return train_sb3(config, folder, callback, problem=problem).result
    run_folder = None if folder is None else Path(folder)
    config = with_costs(config, run_folder, problem)
    with (
        kept_random_states(),
        closing(open_for_search(config, problem)) as scorer,
        SearchProgress(config, callback) as report,
    ):
        ended = None if run_folder is None else bind_folder(run_folder, config, scorer)
        if ended is not None:
            for turn in ended.history:
                report(turn)
            return ended
        agent, history = run_turns(config, scorer, run_folder, report)
        settings = search_hyperparameters(config.agent, config.agent_kwargs)
        result, _ = conclude(config, scorer, answer(agent, config.agent), history, settings, agent.statistics_read)
    if folder is not None:
        result.save(folder)
    return result


def open_for_search(config: SearchConfig, problem: Problem | None = None) -> Scorer:
    """Return the scorer of a search by an ask/tell agent; `problem` is the loaded problem, if there is one."""
    free = agent_class(config.agent).free_budget
    return open_scorer(config.env_id, config.mask_kwargs, config.seed, free, problem)


def run_turns(config: SearchConfig, scorer: Scorer, folder: Path | None, on_turn: OnTurn | None) -> tuple[Agent, list[Turn]]:
    """Run the turns of a `search` until its budget is spent or the agent is done; return the agent and all turns."""
    scorer.warn_at_chance()
    with progress_bar(1, "measuring layer statistics", unit="step") as bar:
        agent = _agent_of(config, scorer, scorer.layer_statistics)
        bar.update()
    race = make_race(config, scorer, agent)
    known = restore(folder, scorer, race) if folder is not None else ()
    history: list[Turn] = []
    # A mask scored on a share of the examples costs that share. Less than one full evaluation is not spent.
    while (left := math.floor(config.evaluations - spent(history))) > 0:
        masks = ask(agent, config.agent, min(left, config.masks_per_turn))
        if len(masks) == 0:
            if not history:
                _check_has_answer(agent, config.agent)
            break
        if len(history) < len(known):
            # The agent repeats what it did before: it asks, and gets the recorded rewards.
            turn = known[len(history)]
            agent.tell(np.array(turn.masks, dtype=bool), np.array(turn.rewards, dtype=np.float64))
            history.append(turn)
        else:
            history.append(run_turn(agent, scorer, race, masks))
            if folder is not None and len(history) % config.save_every == 0:
                state = {} if race is None else race.state_dict()
                Checkpoint(scorer.get_state(), state, tuple(history)).save(folder)
        if on_turn is not None:
            on_turn(history[-1])
    return agent, history


def _check_has_answer(agent: Agent, name: str) -> None:
    """Raise ValueError for an agent that has finished before it was told anything, and has no answer either."""
    try:
        agent.best()
    except ValueError as error:
        raise ValueError(f"agent {name!r} returned no mask when it was first asked, expected one or more") from error


def restore(folder: Path, scorer: Scorer, race: Race | None) -> tuple[Turn, ...]:
    """Restore scorer and race from the checkpoint in a folder, and return its turns; none without a checkpoint."""
    checkpoint = Checkpoint.load(folder, len(scorer.layer_names))
    if checkpoint is None:
        return ()
    with explain_damage(folder / CHECKPOINT, "start a new search"):
        scorer.set_state(checkpoint.scorer)
        if race is not None:
            race.load_state_dict(checkpoint.race)
    return checkpoint.turns


def run_turn(agent: Agent, scorer: Scorer, race: Race | None, masks: Masks) -> Turn:
    """Score the masks that an agent has asked for, (m, n_layers) bool, and report their rewards."""
    raced = Raced(*scorer.score(masks)) if race is None else race.score(masks)
    agent.tell(masks, raced.rewards)
    return Turn.from_scores(masks, *raced, agent.skip_probabilities())


def make_race(config: SearchConfig, scorer: Scorer, agent: Agent) -> Race | None:
    """Return the race of a search; None if every mask is scored on all examples."""
    if scorer.racing_examples is None:
        if config.racing:
            raise ValueError(
                "`racing` is not supported here: got True, but it needs a model or a table with every example, "
                "`reward_batches=fixed`, and a reward of the loss. Leave it out"
            )
        return None
    race = Race(scorer, agent.space)
    wanted = agent.races if config.racing is None else config.racing
    return race if wanted and len(race.ends) > 1 else None  # there are enough examples for a stage before the last


def check_search(config: SearchConfig, problem: Problem | None = None) -> None:
    """Make the scorer and the agent of a search, and discard them: their errors come before anything is scored."""
    if is_algorithm(config.agent):
        cls, known = find_algorithm(config.agent)
        choose_action(known, config.action)
        with_defaults(cls, known, config.agent_kwargs, config.masks_per_turn)
    with closing(open_scorer(config.env_id, config.mask_kwargs, problem=problem)) as scorer:
        if not is_algorithm(config.agent):
            # The real statistics take a model's time.
            _agent_of(config, scorer, dict.fromkeys(STATISTICS, np.zeros(len(scorer.layer_names))))


def _agent_of(config: SearchConfig, scorer: Scorer, statistics: Statistics) -> Agent:
    budget = pick_budget(len(scorer.layer_names), config.budget, scorer.cost_of)
    space = MaskSpace(budget)
    return make_search_agent(config, space, statistics)


def make_search_agent(config: SearchConfig, space: MaskSpace, statistics: Statistics) -> Agent:
    """Make the agent of a search; `SEARCH_DEFAULTS` are filled in."""
    settings = search_hyperparameters(config.agent, config.agent_kwargs)
    # The agent draws from a child of the seed, since the environment draws from the seed itself.
    rng = np.random.default_rng(np.random.SeedSequence(config.seed).spawn(1)[0])
    return make_agent(config.agent, space, rng, settings, statistics)
