"""Compare numbers that a refactoring must not change with their record, `regression.json`; 3 minutes on one thread.

    python -m benchmarks.regression compare        prints what differs, and exits with 1 if something does
    python -m benchmarks.regression record --sections main searches       replaces these sections of the record

`COMMANDS` run on a small Shapes-VQA; `searches` are agents on tables, `environments` observations and losses of 40 masks.
Results of commands have to be equal where processor and libraries are those of the record, and else may be off by 1e-3,
without weights. The others may be off by 1e-6, since sums may be taken in another order.
"""

import hashlib
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from das_gym.agents import SearchConfig, search
from safetensors.numpy import load_file

from benchmarks.harness import describe_machine, make_parser
from das_gym.files import read_json, write_json
from das_gym.shapes.vqa import write_shapes

RECORD = Path(__file__).with_suffix(".json")
STEPS = "task=vqa train.steps=20 train.batch_size=32 train.learning_rate={0} train.head_learning_rate={0}"
TURNS = "das.warmup_epochs=1 das.search_epochs=2 das.finetune_epochs=1 das.steps_per_turn=2 das.masks_per_turn=3"
COMMANDS = {
    "main": f"run with model=METER search.agent=bayes search.skip_num=4 search.evaluations=30 {STEPS.format(1e-3)}",
    "das": f"das with model=METER task=vqa {TURNS} das.skip_num=4 das.batch_size=32 das.reward_examples=32",
    "supernet": f"supernet with model=METER train.max_skipped=8 {STEPS.format(2e-3)}",
    "shrink": "shrink with model=VLM task=answering skip_num=3 search.evaluations=20 recover=none",
}
TABLES = ("METER-VQA", "METER-NLVR2", "METER-F30K", "ViLT-VQA", "ViLT-NLVR2", "VLM-Answering")
LIVE = {name: {"id": f"DAS-{name}-v0"} for name in (*TABLES, "ViLT-F30K")}
LIVE["llava"] = {**LIVE["VLM-Answering"], "checkpoint": "llava_mini"}


def hashed(*arrays: np.ndarray) -> str:
    """Return a hash of the bytes of arrays, whatever they are called and in which order they come."""
    each = sorted(hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays)
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run one of `COMMANDS`, and return what it found and logged at last."""
    words = [*COMMANDS[name].split(), "seed=0", "data_root=data", f"runs_dir={name}"]
    subprocess.run([sys.executable, "-m", "das_gym.adapt", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = {}
    results = folder / name / "1"
    for record in map(read_json, (*results.glob("search.json"), *results.glob("das.json"))):
        result = record.get("search", record)
        found |= {key: result[key] for key in ("mask", "reward", "macs_saved") if key in result}
    for key, metric in read_json(results / "metrics.json").items():
        if key.endswith(("loss", "accuracy")):
            found[f"{key} at step {metric['steps'][-1]}"] = metric["values"][-1]
    for path in sorted(results.glob("*.safetensors"))[:1]:  # the subnet's
        found["weights"] = hashed(*load_file(path).values())
    return found


def searches(*_: Any) -> dict[str, Any]:
    """Return the mask and the reward that each agent finds on each table, and a hash of all masks that it tried."""
    found: dict[str, Any] = {}
    for table, agent in product(TABLES, ("bayes", "bandit", "evolution", "evopress", "greedy", "random")):
        best = search(SearchConfig(f"DAS-{table}-Tabular-v0", agent=agent, skip_num=4, seed=1, evaluations=48))
        masks = np.concatenate([turn.masks for turn in best.history]).astype(bool)
        found[f"{table} {agent}"] = [*map(int, best.mask), best.reward]
        found[f"{table} {agent}: all masks"] = hashed(masks)
    return found


def environments(*_: Any) -> dict[str, Any]:
    """Return what environments with a model observe at reset, and the losses of 40 masks on 12 examples."""
    found = {}
    for name, settings in LIVE.items():
        env = gymnasium.make(**settings, skip_num=4, reward_examples=16).unwrapped
        found[f"{name}: statistics"] = env.reset(seed=0)[0].tolist()
        rng = np.random.default_rng(0)
        masks = np.array([rng.permutation(len(env.scorer.problem.layer_names)) < count % 7 for count in range(40)])
        found[f"{name}: losses"] = env.scorer.problem.evaluator.losses(masks, env.scorer.problem.splits.reward[:12]).tolist()
    return found


def main(arguments: list[str] | None = None, path: Path = RECORD) -> int:
    """Record or compare; the exit code is 1 if something differs."""
    sections = {**dict.fromkeys(COMMANDS, run), "searches": searches, "environments": environments}
    parser = make_parser("regression", __doc__)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("--sections", nargs="+", choices=sections, default=list(sections), help="some sections alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(Path(folder) / "data", seed=3, train_scenes=60, val_scenes=60)
        found = {name: sections[name](name, Path(folder)) for name in options.sections}
    here = describe_machine()
    machine = [here["processor"], here["simd"], *(here["versions"][key] for key in ("torch", "transformers", "numpy"))]
    record = read_json(path) if path.exists() else {"sections": {}}
    if options.what == "record":
        write_json(path, {"machine": machine, "sections": {**record["sections"], **found}})
        return 0
    same = record["machine"] == machine
    lines = []
    for section, values in found.items():
        tolerance = 1e-6 if section not in COMMANDS else 1e-9 if same else 1e-3
        for name, expected in record["sections"][section].items():
            close = expected if isinstance(expected, str) else pytest.approx(expected, rel=tolerance, abs=tolerance)
            if values.get(name) != close and (same or name != "weights"):
                lines.append(f"{section}, {name}: expected {expected}, got {values.get(name)}, tolerance {tolerance:g}")
    print(*lines, f"{len(lines)} values differ", sep="\n")
    return int(len(lines) > 0)


if __name__ == "__main__":
    sys.exit(main())
