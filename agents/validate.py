"""Replay a result record: are reward, loss and MACs what it claims?

    python -m agents validate runs/3
    python -m agents validate runs/3/search.json --tolerance 1e-3

The environment is made again and scores the answer and the best mask seen. Where the examples change from step to step,
every turn is replayed in order (search_history.json). Rewards, losses and metrics agree if they differ by at most the
tolerance, relative to the claim or absolute, whichever is larger: 1e-4 by default, since other machines and libraries
round differently. MACs must be equal. The exit code is 1 if something differs.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.base import AGENTS, agent_class
from agents.environment import fewer_examples, find_scorer, make_env
from agents.record import SCORES, SearchResult
from agents.space import Masks
from das_gym.runs import library_versions

TOLERANCE = 1e-4
EXACT = ("macs",)


@dataclass(frozen=True)
class Check:
    """One number of a record.

    Attributes:
        what: Which: "answer loss", "turn 3, mask 0: reward".
        claimed: What the record says; None stands for a number that is not finite.
        found: What the replay gives.
        agrees: Whether they are the same within the tolerance.
    """

    what: str
    claimed: float | None
    found: float | None
    agrees: bool


def validate(result: SearchResult, tolerance: float = TOLERANCE) -> list[Check]:
    """Replay a result.

    Args:
        result: The record, with its history where examples change from step to step.
        tolerance: Largest difference, relative or absolute, of what is not counted exactly; at least 0.

    Returns:
        One check for every number compared.

    Raises:
        ValueError: a record that its environment does not take, or that lacks the turns it takes to replay it.
    """
    env = make_env(result.env_id, result.env_kwargs, result.masks_per_turn, _took_any_mask(result.agent))
    try:
        base: Any = env.unwrapped
        if tuple(base.layer_names) != tuple(result.layer_names):
            raise ValueError(f"the record is of layers {result.layer_names}, {result.env_id} has {list(base.layer_names)}")
        env.reset(seed=result.seed)
        checks = [_compare("MACs of the full model", result.macs_full, int(base.macs_full), 0.0)]
        if result.env_kwargs.get("reward_batches", "fixed") != "fixed":
            return checks + _replay_turns(env, result, tolerance)
        claims = {"answer": _claim(vars(result)), "best seen": _claim(result.best_seen)}
        masks = np.array([result.mask, result.best_seen["mask"]], dtype=bool)
        for (name, claim), mask in zip(claims.items(), masks, strict=True):
            checks += _check(name, claim, _score(env, mask[None])[0], tolerance)
        return checks
    finally:
        env.close()


def _took_any_mask(agent: str) -> bool:
    """Whether the agent searched in an environment without a budget; the record may be of an algorithm of SB3."""
    return ":" not in agent and agent in AGENTS and agent_class(agent).free_budget


def _replay_turns(env: Any, result: SearchResult, tolerance: float) -> list[Check]:
    if math.ceil(sum(turn.cost for turn in result.history)) != result.evaluations:
        raise ValueError(
            "its rewards depend on the order in which masks were scored, and search_history.json does not hold them all: "
            "put it beside search.json"
        )
    checks = []
    for number, turn in enumerate(result.history):
        with fewer_examples(find_scorer(env.unwrapped), turn.examples_share):
            found = _score(env, np.array(turn.masks, dtype=bool))
        for index, scores in enumerate(found):
            checks += _check(f"turn {number}, mask {index}", _claim(turn.row(index)), scores, tolerance)
    return checks + _check("answer", _claim(vars(result)), _score(env, np.array([result.mask], dtype=bool))[0], tolerance)


def _score(env: Any, masks: Masks) -> list[dict[str, float]]:
    """Scores of (m, n_layers) masks, m at most `num_envs`, in one step: environments to spare repeat the first mask."""
    actions = np.repeat(masks[:1], env.num_envs, axis=0)
    actions[: len(masks)] = masks
    _, rewards, _, _, info = env.step(actions.astype(np.int8))
    return [{"reward": float(rewards[i]), **{name: info[name][i].item() for name in SCORES}} for i in range(len(masks))]


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Validate the records named on the command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m agents validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="search.json, or the folder that holds it")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="largest difference (default 1e-4)")
    options = parser.parse_args(arguments)
    try:
        result = SearchResult.load(options.file)
        checks = validate(result, options.tolerance)
    except (OSError, ValueError, TypeError) as error:
        print(f"cannot validate {options.file}: {error}", file=sys.stderr)
        return 1
    print(report(options.file, result, checks, options.tolerance))
    return 0 if all(check.agrees for check in checks) else 1


def report(file: str | os.PathLike[str], result: SearchResult, checks: Sequence[Check], tolerance: float) -> str:
    """What was found, for a person: the answer's numbers, whatever disagrees, and the verdict."""
    lines = [f"{file}: {result.agent} on {result.env_id}, skips {', '.join(result.skipped_layers) or 'nothing'}"]
    for check in checks:
        if check.what.startswith("answer") or not check.agrees:
            lines.append(
                f"  {check.what:<20s} claimed {check.claimed}, found {check.found}{'' if check.agrees else '  DIFFERS'}"
            )
    here = library_versions()
    others = [
        f"{name} {version} (here {here.get(name)})" for name, version in result.versions.items() if here.get(name) != version
    ]
    if others:
        lines.append(f"  made with {', '.join(others)}")
    wrong = sum(not check.agrees for check in checks)
    verdict = f"{wrong} of {len(checks)} numbers differ" if wrong else f"valid: all {len(checks)} numbers agree"
    lines.append(f"{verdict} (MACs exactly, the others to {tolerance:g})")
    return "\n".join(lines)
