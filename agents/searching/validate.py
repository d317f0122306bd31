"""Replay a search record: are reward, loss and MACs what it claims?

    checks = validate(SearchResult.load("runs/3"))
    assert all(check.agrees for check in checks)

The environment scores the answer and the best scored mask again; both have to satisfy the budget. Where the examples change
from step to step, all turns are replayed in order (search_history.json). What follows from masks and turns is derived
again: skipped layers, the number of evaluations, the best scored mask. Rewards, losses and metrics agree if they differ by
at most the tolerance, relative to the claim or absolute, whichever is larger: 1e-4 by default, since other machines and
libraries round differently. MACs and derived values have to be equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import check_agent_name, check_number
from das_gym.agents.searching.environment import SCORES, fewer_examples, find_scorer, make_env, score_masks
from das_gym.agents.searching.record import SearchResult, Turn, best_row, masks_of

from das_gym.problem.budget import keeps_budget
from das_gym.problem.mask_space import skipped_names
from das_gym.trust import trusted_settings

TOLERANCE = 1e-4
CLAIMS = ("reward", *SCORES)


@dataclass(frozen=True)
class Check:
    """One compared value of a record.

    Attributes:
        what: Its name: "answer: loss", "turn 3, mask 0: reward".
        claimed: The record's value; None stands for a number that is not finite.
        found: The replay's value.
        agrees: Whether they are the same, numbers within the tolerance.
    """

    what: str
    claimed: Any
    found: Any
    agrees: bool


def validate(result: SearchResult, tolerance: float = TOLERANCE, trust_remote_code: bool = False) -> list[Check]:
    """Replay a result.

    Args:
        result: The record. It needs its history if examples change from step to step. If they do not and there is no
            history, the number of evaluations and the best scored mask are not compared.
        tolerance: Largest difference, relative or absolute, of rewards, losses and metrics.
        trust_remote_code: Whether code in the checkpoint's folder may run, if the record requests it.

    Returns:
        One check per compared value.
    """
    check_number("tolerance", tolerance, minimum=0)
    recorded = {"env_id": result.env_id, "env_kwargs": result.env_kwargs}
    trusted = trusted_settings("the record", result.plugins, recorded, trust_remote_code)
    result = dataclasses.replace(result, env_kwargs=trusted["env_kwargs"])
    check_agent_name(result.agent)
    changing = result.env_kwargs.get("reward_batches", "fixed") != "fixed"
    if changing and masks_of(result.history) != result.masks_asked:
        raise ValueError(
            "rewards of this record depend on the order in which masks were scored, and search_history.json does not hold "
            "them all. Put it next to search.json"
        )
    env = make_env(result.env_id, result.env_kwargs, result.masks_per_turn, changing and result.free_budget)
    try:
        base: Any = env.unwrapped
        if tuple(base.layer_names) != tuple(result.layer_names):
            raise ValueError(f"the record has layers {result.layer_names}, {result.env_id} has {list(base.layer_names)}")
        env.reset(seed=result.seed)
        checks = [_compare("MACs of the full model", result.macs_full, int(base.macs_full), 0.0)]
        if changing:
            for number, turn in enumerate(result.history):
                masks = np.array(turn.masks)
                with fewer_examples(find_scorer(base), turn.examples_share):
                    replayed = Turn.of(masks, *score_masks(env, masks))
                for index, (claim, found) in enumerate(zip(turn.rows, replayed.rows, strict=True)):
                    checks += _compare_scores(f"turn {number}, mask {index}", claim, found, tolerance)
        claims = {"answer": vars(result)} if changing else {"answer": vars(result), "best seen": result.best_seen}
        for what, claim in claims.items():
            masks = np.array([claim["mask"]])
            rewards, scores = score_masks(env, masks)
            (found,) = Turn.of(masks, rewards, scores).rows
            keeps = bool(scores.get("feasible", [True])[0])  # environments of other packages may not report it
            keeps = keeps and keeps_budget(result.env_kwargs, claim["mask"], found["macs_saved"])
            checks += _compare_scores(what, claim, found, tolerance)
            checks.append(Check(f"{what}: keeps its budget", True, keeps, keeps))
        return checks + _derived(result)
    finally:
        env.close()


def _compare_scores(what: str, claim: Mapping[str, Any], found: Mapping[str, Any], tolerance: float) -> list[Check]:
    tolerances = {**dict.fromkeys(CLAIMS, tolerance), "macs": 0.0}
    return [_compare(f"{what}: {name}", claim[name], found[name], tolerances[name]) for name in CLAIMS]


def _compare(what: str, claimed: float | None, found: float | None, tolerance: float) -> Check:
    if claimed is None or found is None:
        return Check(what, claimed, found, claimed is found)
    return Check(what, claimed, found, abs(claimed - found) <= tolerance * max(1.0, abs(claimed)))


def _derived(result: SearchResult) -> list[Check]:
    """Compare what follows from the record's own masks and turns."""
    best = result.best_seen
    pairs: dict[str, tuple[Any, Any]] = {
        "answer: n_skipped": (result.n_skipped, sum(result.mask)),
        "answer: skipped_layers": (result.skipped_layers, skipped_names(result.layer_names, result.mask)),
        "best seen: skipped_layers": (best["skipped_layers"], skipped_names(result.layer_names, best["mask"])),
    }
    if result.history or result.masks_asked == 0:
        row = best_row(result.history, result.env_kwargs) or vars(result)
        pairs["evaluations"] = (result.masks_asked, masks_of(result.history))
        pairs |= {f"best seen, of all turns: {name}": (best[name], row[name]) for name in ("mask", *CLAIMS)}
    return [Check(what, claimed, found, claimed == found) for what, (claimed, found) in pairs.items()]
