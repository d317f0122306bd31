"""The search loop: an agent chooses masks, the environment scores them, until the budget is spent."""

import math
import os
from contextlib import closing
from pathlib import Path

import numpy as np
from das_gym.agents.ask_tell.base import Agent, Statistics, agent_class, answer, ask, make_agent
from das_gym.agents.sb3.algorithms import choose_action, find_algorithm, is_algorithm, with_defaults
from das_gym.agents.searching.racing import Race, Raced
from das_gym.agents.searching.record import CHECKPOINT, Checkpoint, OnTurn, SearchResult, Turn, conclude, spent, with_costs
from das_gym.agents.searching.scorer import open_scorer
from das_gym.agents.settings import SearchConfig, search_hyperparameters

from das_gym.commands.progress import progress
from das_gym.envs.scoring import Scorer
from das_gym.files import explain_damage
from das_gym.problem.budget import Masks, pick_budget
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.problem import Problem
from das_gym.problem.statistics import STATISTICS


def search(
    config: SearchConfig | str,
    folder: str | os.PathLike[str] | None = None,
    on_turn: OnTurn | None = None,
    resume: bool = False,
    problem: Problem | None = None,
) -> SearchResult:
    """Search for a mask: spend the budget of `config`, and score the agent's answer.

    The result is the better of the agent's answer and the best mask that was scored on all examples.

    Args:
        config: What to search; the id of an environment stands for the default settings.
        folder: Run folder for `checkpoint.json` and, at the end, `search.json`. None keeps nothing.
        on_turn: Called with each `Turn` after it; a resumed search first calls it with the turns of the checkpoint.
        resume: Continue from the checkpoint in `folder`, if there is one. The result is that of an uninterrupted search.
        problem: The loaded problem of the environment; None loads it.

    Returns:
        The result, also in `folder`.

    Raises:
        ValueError: A setting is not valid for the environment or the agent, the agent asks for masks that are not allowed,
            or the checkpoint is of another search.

    Example:
        >>> from das_gym.agents import SearchConfig, search
        >>> config = SearchConfig("DAS-METER-VQA-Tabular-v0", agent="bayes", evaluations=30, skip_num=4)
        >>> search(config).n_skipped
        4
    """
    if isinstance(config, str):
        config = SearchConfig(config)
    if is_algorithm(config.agent):
        from das_gym.agents.sb3.train import train_sb3

        return train_sb3(config, folder, on_turn, resume, problem=problem).result
    run_folder = None if folder is None else Path(folder)
    config = with_costs(config, run_folder if resume else None, problem)
    with closing(open_for_search(config, problem)) as scorer:
        agent, history = run_turns(config, scorer, run_folder, on_turn, resume)
        settings = search_hyperparameters(config.agent, config.agent_kwargs)
        result, _ = conclude(config, scorer, answer(agent, config.agent), history, settings, agent.statistics_read)
    if folder is not None:
        result.save(folder)
    return result


def open_for_search(config: SearchConfig, problem: Problem | None = None) -> Scorer:
    """Return the scorer of a search by an ask/tell agent; `problem` is the loaded problem, if there is one."""
    free = agent_class(config.agent).free_budget
    return open_scorer(config.env_id, config.mask_kwargs, config.seed, free, problem)


def run_turns(
    config: SearchConfig, scorer: Scorer, folder: Path | None, on_turn: OnTurn | None, resume: bool
) -> tuple[Agent, list[Turn]]:
    """Run the turns of a `search` until its budget is spent or the agent is done; return the agent and all turns."""
    scorer.warn_at_chance()
    with progress(1, "measuring layer statistics", unit="step") as bar:
        agent = _agent_of(config, scorer, scorer.layer_statistics)
        bar.update()
    race = make_race(config, scorer, agent)
    known = restore(folder, config, scorer, race) if resume and folder is not None else ()
    history: list[Turn] = []
    # A mask scored on a share of the examples costs that share. Less than one full evaluation is not spent.
    while (left := math.floor(config.evaluations - spent(history))) > 0:
        masks = ask(agent, config.agent, min(left, config.masks_per_turn))
        if len(masks) == 0:
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
                Checkpoint(scorer.get_state(), state, tuple(history)).save(folder, config)
        if on_turn is not None:
            on_turn(history[-1])
    return agent, history


def restore(folder: Path, config: SearchConfig, scorer: Scorer, race: Race | None) -> tuple[Turn, ...]:
    """Restore scorer and race from the checkpoint in a folder, and return its turns; none without a checkpoint."""
    checkpoint = Checkpoint.load(folder, config, len(scorer.layer_names))
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
