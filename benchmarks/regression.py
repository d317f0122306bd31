"""Record numbers that a refactoring must not change, and compare the code with the record.

    python -m benchmarks.regression record
    python -m benchmarks.regression compare
    python -m benchmarks.regression record --sections searches losses       replaces these in the record, keeps the others

About 4 minutes of processor time on one thread. Commands run in processes of their own, in a temporary folder, on a small
Shapes-VQA that is written there. The sections:

  main        `python -m adapt`, shortened: a search, 20 training steps: mask, reward, losses, accuracies, trained weights.
  searches    six agents on six tables: masks and rewards.
  losses      40 masks of METER, ViLT and both bundled answering models, by the engine and by plain forwards.
  das         `python -m adapt das`, two epochs of search and one of fine-tuning: losses, mask, trained weights.
  supernet    `python -m adapt supernet`, 20 steps: losses and weights.
  shrink      the bundled answering model without 3 layers: mask, and logits of the saved folder in transformers.
  export      fine-tuned METER and ViLT as folders: logits in transformers.
  statistics  what every environment observes at reset.
  resume      a search that is killed (SIGKILL) and resumed: it ends as the one that was not interrupted.

`compare` prints each value that differs, with its tolerance, and exits with 1 if there is one. Numbers are recorded with 10
significant digits. On the processor, thread count and libraries of the record, these have to be equal: `main`, `das`,
`supernet`, `export`, `searches`, `resume`. `losses`, `shrink` and `statistics` may be off by 1e-6, since sums
may be taken in another order. Elsewhere trained numbers may be off by 1e-3, others by 1e-6, and weights are not compared.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from das_gym.agents import SearchConfig, search

import das_gym  # noqa: F401 - registers the environments
from benchmarks.machine import describe_machine, make_parser
from das_gym.files import read_json, write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_problem
from das_gym.shapes.vqa import write_shapes

Values = dict[str, Any]
"""By name: a number, a text, or a list of numbers."""

TRAINED = ("main", "das", "supernet", "export")
"""Sections whose numbers come from training."""

EXACT = ("searches", "resume")
"""Sections that are equal to the bit on the machine of the record."""

SCORED = 1e-6
"""Tolerance of the other sections, and of `EXACT` on another machine."""

ELSEWHERE = 1e-3
"""Tolerance of `TRAINED` on another machine, after 20 steps in float32."""

AGENTS = ("bayes", "bandit", "evolution", "evopress", "greedy", "random")
TABLES = ("METER-VQA", "METER-NLVR2", "METER-F30K", "ViLT-VQA", "ViLT-NLVR2", "VLM-Answering")
MASK = "[0,1,0,0,0,1,0,0,1,0,0,1]"

FAMILIES = {
    "meter": {"model": "METER", "task": "vqa"},
    "vilt": {"model": "ViLT", "task": "vqa"},
    "smolvlm": {"model": "VLM", "task": "answering"},
    "llava": {"model": "VLM", "task": "answering", "checkpoint": "llava_mini"},
}

LIVE = ("METER-VQA", "METER-NLVR2", "METER-F30K", "ViLT-VQA", "ViLT-NLVR2", "ViLT-F30K")
"""Environments of METER and ViLT whose supernets are bundled."""


@dataclass(frozen=True)
class Workplace:
    """An empty temporary folder in which commands run, with one thread, and what several sections need."""

    folder: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `python -m` with these words."""
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, "-m", *words], cwd=self.folder, env={**os.environ, **one}, **pipes)

    def run(self, *words: str) -> str:
        """Run `python -m` with these words, and return what it printed."""
        process = self.start(*words)
        printed = process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"python -m {' '.join(words)} failed:\n{printed[-3000:]}")
        return printed

    @cache  # noqa: B019 - one workplace a process
    def data(self) -> str:
        """Write a small Shapes-VQA, and return the setting that names it."""
        return f"data_root={write_shapes(self.folder / 'data', seed=3, train_scenes=60, val_scenes=60)}"

    @cache  # noqa: B019
    def finetuned(self, model: str) -> Path:
        """Return the run folder of `python -m adapt`: METER after a search of 30 masks, ViLT with a given mask."""
        chosen = [f"mask={MASK}"]
        runs = f"runs_dir=runs_{model}"
        if model == "METER":
            chosen = ["search.agent=bayes", "search.skip_num=4", "search.evaluations=30"]
        training = ["train.steps=20", "train.batch_size=32", "seed=0"]
        training += ["train.learning_rate=1e-3", "train.head_learning_rate=1e-3"]
        self.run("das_gym.adapt", "with", f"model={model}", "task=vqa", self.data(), runs, *chosen, *training)
        return self.folder / f"runs_{model}" / "1"


def bits(mask: Any) -> str:
    """Return a mask as text: 1 = skipped."""
    return "".join("1" if bit else "0" for bit in mask)


def hashed(*arrays: Any) -> str:
    """Return a hash of arrays: their bytes, whatever they are called and in which order they come."""
    each = sorted(hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays)
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def weights(path: Path) -> str:
    """Return a hash of the tensors of a safetensors file."""
    from safetensors.numpy import load_file

    return hashed(*load_file(path).values())


def logged(run: Path) -> Values:
    """Return the losses and accuracies that a run logged of its subnet and its search, each with its last step."""
    found = {}
    for name, metric in read_json(run / "metrics.json").items():
        if name.endswith(("loss", "accuracy")) and not ("unskipped" in name or "no adapters" in name):
            found[f"{name} at step {metric['steps'][-1]}"] = metric["values"][-1]
    return found


def main_job(place: Workplace) -> Values:
    """The README's command, shortened."""
    run = place.finetuned("METER")
    found = read_json(run / "search.json")
    subnet = next(model for model in read_json(run / "adapt.json")["models"] if any(model["mask"]))
    searched = {"mask": bits(subnet["mask"]), "reward": found["reward"], "macs_saved": subnet["macs_saved"]}
    return {**searched, **logged(run), "weights": weights(run / "adapter.safetensors")}


def searches(_: Workplace) -> Values:
    """Agents on tables."""
    found: Values = {}
    for table in TABLES:
        for agent in AGENTS:
            config = {"env_id": f"DAS-{table}-Tabular-v0", "skip_num": 4, "agent": agent, "seed": 1}
            result = search(SearchConfig(**config, masks_per_turn=3, evaluations=48))  # type: ignore[arg-type]
            found[f"{table} {agent}"] = f"{bits(result.mask)} {result.reward:.6f}"
            masks = np.concatenate([turn.masks for turn in result.history]).astype(bool)
            found[f"{table} {agent}: all masks"] = hashed(masks)
    return found


@torch.inference_mode()
def losses(_: Workplace) -> Values:
    """Masks by the engine, and by the model's plain forward one after another."""
    found: Values = {}
    for name, settings in FAMILIES.items():
        problem = load_problem(ProblemConfig(**settings, device="cpu", precision="float32"))  # type: ignore[arg-type]
        task = problem.task
        examples = problem.splits.reward[:12]
        rng = np.random.default_rng(0)
        counts = np.arange(40) % 7
        masks = np.array([rng.permutation(len(problem.vlp.layers)) < count for count in counts])
        found[f"{name}: engine"] = problem.evaluator.losses(masks, examples).tolist()
        forward = problem.vlp.make_forward(task.processor, task.pairs(examples))
        targets = task.targets(examples)
        plain = [task.losses(problem.head(task.group_features(forward(mask))), targets).double().mean() for mask in masks]
        found[f"{name}: plain"] = [float(loss) for loss in plain]
    return found


def das(place: Workplace) -> Values:
    """The paper's pipeline."""
    epochs = ["das.warmup_epochs=1", "das.search_epochs=2", "das.finetune_epochs=1", "das.steps_per_turn=2"]
    pipeline = [*epochs, "das.skip_num=4", "das.masks_per_turn=3", "das.batch_size=32", "das.reward_examples=32"]
    where = [place.data(), "runs_dir=runs_das"]
    place.run("das_gym.adapt", "das", "with", "model=METER", "task=vqa", "seed=0", *where, *pipeline)
    run = place.folder / "runs_das" / "1"
    found = read_json(run / "das.json")["search"]
    turns = hashed(np.array([turn["masks"] for turn in found["turns"]], dtype=bool))
    return {"mask": bits(found["mask"]), "turns": turns, **logged(run), "weights": weights(run / "adapter.safetensors")}


def supernet(place: Workplace) -> Values:
    """A supernet."""
    training = ["train.steps=20", "train.batch_size=32", "train.max_skipped=8", "seed=0"]
    training += ["train.learning_rate=2e-3", "train.head_learning_rate=2e-3"]
    where = [place.data(), "runs_dir=runs_supernet"]
    place.run("das_gym.adapt", "supernet", "with", "model=METER", "task=vqa", *where, *training)
    run = place.folder / "runs_supernet" / "1"
    return {**logged(run), "weights": weights(run / "supernet.safetensors")}


@torch.inference_mode()
def shrink(place: Workplace) -> Values:
    """A smaller answering model."""
    from transformers import AutoModelForImageTextToText

    out = place.folder / "smaller"
    chosen = ["skip_num=3", "search.agent=bayes", "search.evaluations=20", "recover=none"]
    where = [place.data(), f"out={out}", "runs_dir=runs_shrink"]
    place.run("das_gym.adapt", "shrink", "with", "model=VLM", "task=answering", *where, *chosen)
    run = place.folder / "runs_shrink" / "1"
    model = AutoModelForImageTextToText.from_pretrained(out, local_files_only=True).eval()
    ids = torch.randint(10, 400, (2, 24), generator=torch.Generator().manual_seed(0))
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1, :16]
    mask = read_json(run / "search.json")["mask"]
    return {"mask": bits(mask), "logits": logits.flatten().tolist()}


@torch.inference_mode()
def export(place: Workplace) -> Values:
    """Exported folders, read by transformers alone."""
    import transformers

    found: Values = {}
    for model in ("METER", "ViLT"):
        run = place.finetuned(model)
        out = place.folder / f"exported_{model}"
        place.run("das_gym.adapt", "export", "with", f"run={run}", f"out={out}")
        config = read_json(out / "config.json")
        kind = getattr(transformers, config["architectures"][0], transformers.AutoModel)
        exported = kind.from_pretrained(out, trust_remote_code=True, local_files_only=True).eval()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, 300, (2, 12), generator=generator)
        pixels = torch.rand(2, 3, 96, 96, generator=generator) * 2 - 1
        logits = exported(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits
        found[model] = logits[:, :16].flatten().tolist()
    return found


def statistics(_: Workplace) -> Values:
    """Observations of every environment with a model; those of tables are among them."""
    found: Values = {}
    for name in LIVE:
        env = gymnasium.make(f"DAS-{name}-v0", skip_num=4, reward_examples=16)
        found[name] = env.reset(seed=0)[0].tolist()
    for name, checkpoint in (("smolvlm", {}), ("llava", {"checkpoint": "llava_mini"})):
        env = gymnasium.make("DAS-VLM-Answering-v0", skip_num=4, reward_examples=16, **checkpoint)
        found[name] = env.reset(seed=0)[0].tolist()
    for name in TABLES:
        found[f"{name} (table)"] = gymnasium.make(f"DAS-{name}-Tabular-v0", skip_num=4).reset(seed=0)[0].tolist()
    suite = gymnasium.make("DAS-Suite-v0").reset(seed=0)[0]
    parts = suite.values() if isinstance(suite, dict) else [suite]
    found["suite"] = hashed(*(np.round(np.asarray(part, float), 6) for part in parts))
    return found


def resume(place: Workplace) -> Values:
    """A search that is killed after a few turns, and one that is not."""
    words = ["das_gym.agents", "with", "meter_vqa", "agent=bayes", "skip_num=4", "evaluations=60", "seed=2", place.data()]
    place.run(*words, "runs_dir=runs_whole")
    process = place.start(*words, "runs_dir=runs_killed")
    checkpoint = place.folder / "runs_killed" / "1" / "checkpoint.json"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError("the search ended before it was killed: use more evaluations")
    place.run("das_gym.agents", "with", "runs_dir=runs_killed", "resume=1")
    found = {}
    for runs in ("runs_whole", "runs_killed"):
        run = place.folder / runs / "1"
        result = read_json(run / "search.json")
        turns = read_json(run / "search_history.json")["turns"]
        found[f"{runs}: mask"] = bits(result["mask"])
        found[f"{runs}: reward"] = result["reward"]
        found[f"{runs}: rewards"] = [reward for turn in turns for reward in turn["rewards"]]
    if found["runs_whole: rewards"] != found["runs_killed: rewards"]:
        raise RuntimeError("the resumed search is not the one that was not interrupted")
    return found


SECTIONS: dict[str, Callable[[Workplace], Values]] = {
    "main": main_job,
    "searches": searches,
    "losses": losses,
    "das": das,
    "supernet": supernet,
    "shrink": shrink,
    "export": export,
    "statistics": statistics,
    "resume": resume,
}


def measure(sections: list[str]) -> dict[str, Values]:
    """Return the values of some sections; print how much processor time each took."""
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder))
        for name in sections:
            before = sum(os.times()[:4])
            text = json.dumps(SECTIONS[name](place))
            found[name] = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.10g}"))
            print(f"{name}: {len(found[name])} values, {sum(os.times()[:4]) - before:.1f} s of processor time", flush=True)
    return found


def same_machine(recorded: Values, here: Values) -> bool:
    """Return whether numbers in float32 have to be equal to the bit: the version of das_gym may change."""
    versions = [{**machine["versions"], "das_gym": None} for machine in (recorded, here)]
    return versions[0] == versions[1] and all(recorded[name] == here[name] for name in ("processor", "simd", "threads"))


def tolerance(section: str, same: bool) -> float:
    """Return how much a number may differ, relative to the larger of 1 and itself."""
    if section in TRAINED:
        return 0.0 if same else ELSEWHERE
    return 0.0 if section in EXACT and same else SCORED


def numbers(values: Values) -> Values:
    """Return values by name, each entry of a list by itself."""
    found = {}
    for name, value in values.items():
        if isinstance(value, list):
            found.update({f"{name}[{place}]": entry for place, entry in enumerate(value)})
        else:
            found[name] = value
    return found


def is_close(one: Any, other: Any, allowed: float) -> bool:
    """Return whether values are equal, or numbers within a tolerance relative to the larger of 1 and the first."""
    if isinstance(one, float | int) and isinstance(other, float | int):
        return abs(one - other) <= allowed * max(1.0, abs(one))
    return bool(one == other)


def compare(recorded: Values, found: dict[str, Values], same: bool) -> int:
    """Print what differs, and how many values do; return that."""
    compared = different = 0
    for section, values in found.items():
        allowed = tolerance(section, same)
        got = numbers(values)
        for name, one in numbers(recorded[section]).items():
            if name == "weights" and not same:
                continue
            compared += 1
            if not is_close(one, got.get(name), allowed):
                different += 1
                print(f"{section}, {name}: expected {one}, got {got.get(name)}, tolerance {allowed:g}")
    print(f"{compared - different} values are equal, {different} differ")
    return different


def main(arguments: list[str] | None = None) -> int:
    """Record or compare; the exit code is 1 where something differs."""
    parser = make_parser("regression", __doc__)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "regression.json", help="the record")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="some sections alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    machine = describe_machine()
    found = measure(options.sections)
    if options.what == "record":
        kept = read_json(options.json)["sections"] if options.json.exists() else {}
        write_json(options.json, {"machine": machine, "sections": {**kept, **found}})
        return 0
    recorded = read_json(options.json)
    return int(compare(recorded["sections"], found, same_machine(recorded["machine"], machine)) > 0)


if __name__ == "__main__":
    sys.exit(main())
