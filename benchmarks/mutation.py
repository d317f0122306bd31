"""Mutation testing: Cosmic Ray edits one expression of a module at a time, and the module's tests should fail.

python -m benchmarks.mutation bandit budget       these modules; all of them without names, which takes hours
python -m benchmarks.mutation bandit --limit 40   a random sample of 40 edits per module, with a fixed seed

Needs `pip install cosmic-ray`. It edits a clone of HEAD, and prints each edit that no test noticed as a diff.
"""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import make_parser
from das_gym.names import check_names

REPOSITORY = Path(__file__).parents[1]
COSMIC_RAY = (sys.executable, "-m", "cosmic_ray.cli")
SLOWEST = 300.0
"""Seconds that the tests may take with an edit; one that takes longer counts as noticed."""


TARGETS: dict[str, tuple[str, ...]] = {
    "bandit": ("agents/ask_tell/bandit.py", "tests/agents/ask_tell/test_bandit.py"),
    "budget": ("das_gym/problem/budget.py", "tests/problem/test_budget.py", "tests/problem/test_rewards.py"),
    "rewards": ("das_gym/problem/rewards.py", "tests/problem/test_rewards.py"),
    "statistics": ("das_gym/problem/statistics.py", "tests/problem/test_statistics.py"),
    "tree": ("das_gym/engine/tree.py", "tests/engine"),
    "evaluator": ("das_gym/engine/evaluator.py", "tests/engine"),
    "encoder_cache": ("das_gym/engine/encoder_cache.py", "tests/engine"),
    "memory": ("das_gym/engine/memory.py", "tests/engine"),
    "supernet": ("adapt/supernet.py", "tests/adapt/test_supernet.py"),
    "training": ("adapt/training.py", "tests/adapt/test_training.py"),
}
"""By name: the module that is edited, and its tests; paths from the repository."""

CONFIG = """
[cosmic-ray]
module-path = "{module}"
timeout = {timeout}
excluded-modules = []
test-command = "{python} -m pytest -x -q -n0 -p no:cacheprovider {tests}"

[cosmic-ray.distributor]
name = "local"
"""


def choose(session: Path, limit: int | None) -> None:
    """Drop edits of `|`, which stands in annotations, and leave `limit` of the others, drawn with a fixed seed."""
    with sqlite3.connect(session) as database:
        chosen = "select job_id from mutation_specs where operator_name not like 'core/ReplaceBinaryOperator_BitOr_%'"
        jobs = sorted(job for (job,) in database.execute(chosen))
        kept = set(jobs if limit is None else random.Random(0).sample(jobs, min(limit, len(jobs))))
        for (job,) in database.execute("select job_id from work_items").fetchall():
            if job not in kept:
                for table in ("mutation_specs", "work_items"):
                    database.execute(f"delete from {table} where job_id = ?", (job,))


def survivors(session: Path) -> tuple[int, list[str]]:
    """Return the number of edits and the diffs of those that no test noticed."""
    dump = subprocess.run([*COSMIC_RAY, "dump", session], check=True, capture_output=True, text=True).stdout
    results = [json.loads(line)[1] for line in dump.splitlines()]
    tried = [result for result in results if result is not None]
    return len(tried), [result["diff"] or "" for result in tried if result["test_outcome"] == "survived"]


def run(target: tuple[str, ...], clone: Path, limit: int | None) -> tuple[int, list[str]]:
    """Edit a module in a clone of the repository; returns what `survivors` does."""
    module, *tests = target
    config = clone / "mutation.toml"
    session = clone / "mutation.sqlite"
    session.unlink(missing_ok=True)
    config.write_text(CONFIG.format(module=module, timeout=SLOWEST, python=sys.executable, tests=" ".join(tests)))
    subprocess.run([*COSMIC_RAY, "init", config, session], check=True, cwd=clone)
    choose(session, limit)
    subprocess.run([*COSMIC_RAY, "baseline", config], check=True, cwd=clone)
    subprocess.run([*COSMIC_RAY, "exec", config, session], check=True, cwd=clone)
    return survivors(session)


def main(arguments: Sequence[str] | None = None) -> None:
    """Edit the named modules and print the edits that survive."""
    parser = make_parser("mutation", __doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TARGETS)}; default all")
    parser.add_argument("--limit", type=int, help="largest number of edits per module")
    options = parser.parse_args(arguments)
    check_names(options.modules, TARGETS, "module")
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "das_gym"
        subprocess.run(["git", "clone", "--quiet", REPOSITORY, clone], check=True)
        for name in ("agents", "adapt"):  # the clone's own, and not those of an editable install
            (clone / "das_gym" / name).symlink_to(clone / name)
        for name in options.modules or TARGETS:
            tried, left = run(TARGETS[name], clone, options.limit)
            print(f"{name}: {tried} edits, {len(left)} survive")
            for diff in left:
                print(diff)


if __name__ == "__main__":
    main()
