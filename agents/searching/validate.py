"""Replay a search record: are reward, loss and MACs what it claims?

    assert not validate(SearchResult.load("runs/3"))

The environment scores the answer and the best scored mask again; both have to satisfy the budget. Where the examples change
from step to step, all turns are replayed in order (search_history.json).
"""

from __future__ import annotations

import dataclasses
from contextlib import closing

import numpy as np
from das_gym.agents.searching.record import SearchResult, Turn, masks_of
from das_gym.agents.searching.scorer import SCORES, open_scorer

from das_gym.commands.trust import trusted_settings
from das_gym.problem.budget import keeps_budget

TOLERANCE = 1e-4
"""Other machines and libraries round differently."""


def validate(result: SearchResult, tolerance: float = TOLERANCE, trust_remote_code: bool = False) -> list[str]:
    """Replay a result, and return what differs from its claims, a line each.

    Args:
        result: The record. It needs its history if examples change from step to step.
        tolerance: Largest difference, relative to the claim or absolute, of rewards, losses and metrics.
        trust_remote_code: Whether code in the checkpoint's folder may run, if the record requests it.
    """
    recorded = {"env_id": result.env_id, "env_kwargs": result.env_kwargs}
    trusted = trusted_settings("the record", result.plugins, recorded, trust_remote_code)
    result = dataclasses.replace(result, env_kwargs=trusted["env_kwargs"])
    changing = result.env_kwargs.get("reward_batches", "fixed") != "fixed"
    if changing and masks_of(result.history) != result.masks_asked:
        raise ValueError(
            "rewards of this record depend on the order in which masks were scored, and search_history.json does not hold "
            "them all. Put it next to search.json"
        )
    turns = enumerate(result.history) if changing else ()
    # where examples change, all masks of a turn have the same share: there is no racing
    claims = [(f"turn {number}", turn.rows, turn.shares[0]) for number, turn in turns]
    claims.append(("answer", [vars(result)], 1.0))
    if not changing:  # else the turn in which it was scored is replayed above
        claims.append(("best seen", [result.best_seen], 1.0))
    free = changing and result.free_budget
    opened = open_scorer(result.env_id, result.env_kwargs, result.seed, max(2, result.masks_per_turn), free)
    with closing(opened) as scorer:
        if scorer.layer_names != tuple(result.layer_names):
            raise ValueError(f"the record has layers {result.layer_names}, {result.env_id} has {list(scorer.layer_names)}")
        differences = [_difference("MACs of the full model", result.macs_full, scorer.macs_full, 0.0)]
        for what, rows, share in claims:
            masks = np.array([row["mask"] for row in rows], dtype=bool)
            rewards, scores = scorer.score(masks, share)
            for index, found in enumerate(Turn.of(masks, rewards, scores).rows):
                for name in ("reward", *SCORES):
                    allowed = 0.0 if name == "macs" else tolerance
                    differences.append(_difference(f"{what}, mask {index}: {name}", rows[index][name], found[name], allowed))
            if what in ("answer", "best seen"):
                # environments of other packages may not report whether a mask is feasible
                kept = bool(scores.get("feasible", [True])[0])
                kept = kept and keeps_budget(result.env_kwargs, rows[0]["mask"], float(scores["macs_saved"][0]))
                differences.append(_difference(f"{what}: keeps its budget", True, kept, 0.0))
    return [each for each in differences if each]


def _difference(what: str, claimed: float | None, found: float | None, tolerance: float) -> str:
    """Return a line on two values that differ; None stands for a number that is not finite."""
    if claimed is None or found is None:
        agrees = claimed is found
    else:
        agrees = abs(claimed - found) <= tolerance * max(1.0, abs(claimed))
    return "" if agrees else f"{what}: {claimed} in the record, {found} in the replay"
