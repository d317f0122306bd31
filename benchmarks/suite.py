"""How many steps a second the environments of the suite make.

    python -m benchmarks.suite
    python -m benchmarks.suite --num-envs 16 256 --seconds 3

Steps are counted as Stable-Baselines3 counts them: one step of n environments is n. Actions are random and drawn before.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium

import das_gym  # noqa: F401  (registers the environments)
from benchmarks.machine import describe_machine
from benchmarks.tabular import ACTIONS, steps_per_second, steps_per_second_alone
from das_gym.files import write_json


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", help="folder of a suite; the bundled one by default")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure each")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    records: list[dict[str, Any]] = []

    def keep(id: str, action: str, observed: str, form: str, rate: float) -> None:
        records.append({"id": id, "action": action, "observed": observed, "form": form, "steps_per_second": rate})
        print(f"{id}, {action}, {observed}, {form}: {rate:,.0f} steps a second", flush=True)

    for action in ACTIONS:
        for observed in ("flat", "dict"):
            settings = {"suite": options.suite, "action": action, "flat": observed == "flat"}
            alone = gymnasium.make("DAS-Suite-v0", **settings)
            keep("DAS-Suite-v0", action, observed, "alone", steps_per_second_alone(alone, options.seconds))
            for count in options.num_envs:
                env = gymnasium.make_vec("DAS-Suite-v0", num_envs=count, **settings)
                keep("DAS-Suite-v0", action, observed, f"{count} side by side", steps_per_second(env, options.seconds))
    search = gymnasium.make("DAS-Suite-Search-v0", suite=options.suite)
    keep("DAS-Suite-Search-v0", "scores", "dict", "alone", steps_per_second_alone(search, options.seconds))
    for count in options.num_envs:
        several = gymnasium.make_vec("DAS-Suite-Search-v0", num_envs=count, suite=options.suite)
        rate = steps_per_second(several, options.seconds)
        keep("DAS-Suite-Search-v0", "scores", "dict", f"{count} side by side", rate)
    if options.json is not None:
        write_json(options.json, {"machine": describe_machine(), "records": records})


if __name__ == "__main__":
    main()
