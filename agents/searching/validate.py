"""Replay a result record: are reward, loss and MACs what it claims?

    checks = validate(SearchResult.load("runs/3"))
    assert all(check.agrees for check in checks)

The environment is made again and scores the answer and the best mask seen, both of which must keep the budget. Where the
examples change from step to step, every turn is replayed in order (search_history.json). What follows from masks and turns
is derived again: skipped layers, the number of evaluations, which mask is the best one seen. Rewards, losses and metrics
agree if they differ by at most the tolerance, relative to the claim or absolute, whichever is larger: 1e-4 by default,
since other machines and libraries round differently. MACs and what is derived must be equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import check_number
from das_gym.agents.sb3.config import check_agent_name
from das_gym.agents.searching.environment import fewer_examples, find_scorer, make_env
from das_gym.agents.searching.record import SCORES, SearchResult, best_row, masks_of

from das_gym.problem.budget import Masks, keeps_budget
from das_gym.problem.mask_space import skipped_names
from das_gym.trust import trusted_settings

TOLERANCE = 1e-4
EXACT = ("macs",)
ANSWER = tuple(f"answer: {name}" for name in ("reward", *SCORES))


@dataclass(frozen=True)
class Check:
    """One value of a record.

    Attributes:
        what: Which: "answer: loss", "turn 3, mask 0: reward".
        claimed: What the record says; None stands for a number that is not finite.
        found: What the replay gives.
        agrees: Whether they are the same, numbers within the tolerance.
    """

    what: str
    claimed: Any
    found: Any
    agrees: bool


def validate(result: SearchResult, tolerance: float = TOLERANCE, trust_remote_code: bool = False) -> list[Check]:
    """Replay a result.

    Args:
        result: The record, with its history where examples change from step to step. Without its history elsewhere,
            `evaluations` and which mask is the best one seen are not compared.
        tolerance: Largest difference, relative or absolute, of what is not counted exactly; finite, at least 0.
        trust_remote_code: Whether code in the checkpoint's folder may run, where the record says so.

    Returns:
        One check for every value compared.

    Raises:
        ValueError: a record that its environment does not take, that lacks the turns it takes to replay it, or whose
            agent there is not; or one that names modules that are not imported yet.
    """
    check_number("tolerance", tolerance, minimum=0)
    recorded = {"env_id": result.env_id, "env_kwargs": result.env_kwargs}
    trusted = trusted_settings("the record", result.plugins, recorded, trust_remote_code)
    result = dataclasses.replace(result, env_kwargs=trusted["env_kwargs"])
    check_agent_name(result.agent)
    changing = result.env_kwargs.get("reward_batches", "fixed") != "fixed"
    if changing and not _has_all_turns(result):
        raise ValueError(
            "its rewards depend on the order in which masks were scored, and search_history.json does not hold them all: "
            "put it beside search.json"
        )
    env = make_env(result.env_id, result.env_kwargs, result.masks_per_turn, changing and result.free_budget)
    try:
        base: Any = env.unwrapped
        if tuple(base.layer_names) != tuple(result.layer_names):
            raise ValueError(f"the record is of layers {result.layer_names}, {result.env_id} has {list(base.layer_names)}")
        env.reset(seed=result.seed)
        checks = [_compare("MACs of the full model", result.macs_full, int(base.macs_full), 0.0)]
        checks += _replay_turns(env, result, tolerance) if changing else []
        checks += _replay_mask(env, "answer", vars(result), result.env_kwargs, tolerance)
        if not changing:
            checks += _replay_mask(env, "best seen", result.best_seen, result.env_kwargs, tolerance)
        return checks + _derived(result)
    finally:
        env.close()


def _has_all_turns(result: SearchResult) -> bool:
    return masks_of(result.history) == result.masks_asked


def _replay_mask(env: Any, what: str, claim: Any, budget: Mapping[str, Any], tolerance: float) -> list[Check]:
    """Score one mask again; it has to keep the budget, also in an environment that takes any mask."""
    found = _score(env, np.array([claim["mask"]], dtype=bool))[0]
    keeps = found["feasible"] and keeps_budget(budget, claim["mask"], found["macs_saved"])
    return [*_check(what, _claim(claim), found, tolerance), Check(f"{what}: keeps its budget", True, keeps, keeps)]


def _replay_turns(env: Any, result: SearchResult, tolerance: float) -> list[Check]:
    checks = []
    for number, turn in enumerate(result.history):
        with fewer_examples(find_scorer(env.unwrapped), turn.examples_share):
            found = _score(env, np.array(turn.masks, dtype=bool))
        for index, scores in enumerate(found):
            checks += _check(f"turn {number}, mask {index}", _claim(turn.row(index)), scores, tolerance)
    return checks


def _derived(result: SearchResult) -> list[Check]:
    """What follows from the record's own masks and turns."""
    best = result.best_seen
    pairs = {
        "answer: n_skipped": (result.n_skipped, sum(result.mask)),
        "answer: skipped_layers": (result.skipped_layers, skipped_names(result.layer_names, result.mask)),
        "best seen: skipped_layers": (best["skipped_layers"], skipped_names(result.layer_names, best["mask"])),
    }
    if result.history or result.masks_asked == 0:
        row = best_row(result.history, result.env_kwargs) or {"mask": result.mask, **_claim(vars(result))}
        pairs["evaluations"] = (result.masks_asked, masks_of(result.history))
        pairs |= {f"best seen, of all turns: {name}": (best[name], row[name]) for name in ("mask", "reward", *SCORES)}
    return [Check(what, claimed, found, claimed == found) for what, (claimed, found) in pairs.items()]


def _score(env: Any, masks: Masks) -> list[dict[str, Any]]:
    """Scores of (m, n_layers) masks, m at most `num_envs`, in one step: environments to spare repeat the first mask.

    `feasible` among them is what the environment says; True where it says nothing.
    """
    actions = np.repeat(masks[:1], env.num_envs, axis=0)
    actions[: len(masks)] = masks
    _, rewards, _, _, info = env.step(actions.astype(np.int8))
    feasible = info.get("feasible", np.ones(len(actions), dtype=bool))
    return [
        {"reward": float(rewards[i]), "feasible": bool(feasible[i]), **{name: info[name][i].item() for name in SCORES}}
        for i in range(len(masks))
    ]


def _claim(row: Any) -> dict[str, float | None]:
    return {name: row[name] for name in ("reward", *SCORES)}


def _check(what: str, claim: dict[str, float | None], found: dict[str, float], tolerance: float) -> list[Check]:
    return [
        _compare(f"{what}: {name}", claimed, found[name], 0.0 if name in EXACT else tolerance)
        for name, claimed in claim.items()
    ]


def _compare(what: str, claimed: float | None, found: float, tolerance: float) -> Check:
    shown = found if np.isfinite(found) else None
    if claimed is None or shown is None:
        return Check(what, claimed, shown, claimed is shown)
    return Check(what, claimed, shown, abs(claimed - shown) <= tolerance * max(1.0, abs(claimed)))
