"""What lockstep costs besides the layers: an episode of many environments against its layers alone, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.per_input                    METER-mini, VQA, 256 environments
    OMP_NUM_THREADS=1 python -m benchmarks.per_input --model ViLT --num-envs 64

Actions are random: each unit is skipped for an example with probability 0.4, so that the rows of a batch disagree. An
episode is one `step` a stage of the vector environment, the last of which also starts the next episode. All examples have
been seen before, so that encoder outputs come from the cache. `layers` are the kept layers, and `skip adapters` those of the
skipped ones, of the same examples under the same masks, on rows selected before the clock starts. Times are processor times
of this process, medians over episodes; each episode is followed by its layers alone.
"""

import time
from typing import Any

import gymnasium
import numpy as np
import torch

import das_gym  # noqa: F401 - registers the environments
from benchmarks.harness import make_parser
from das_gym.models.inputs import to_device

SKIP = 0.4


def run_episode(env: Any, masks: np.ndarray) -> tuple[float, np.ndarray]:
    """Run an episode in which each environment chooses its row of (num_envs, n_layers) masks.

    Returns:
        Its processor time in seconds, and the (num_envs,) places of its examples.
    """
    started = time.process_time()
    for units in env.problem.vlp.stages:
        *_, info = env.step(masks[:, list(units)].astype(np.int8))
    return time.process_time() - started, info["final_info"]["example"]


@torch.inference_mode()
def layer_seconds(problem: Any, examples: list[Any], masks: np.ndarray) -> tuple[float, float]:
    """Return the processor times of kept layers and of skip adapters alone, in batches of the evaluator's size."""
    vlp = problem.vlp
    seconds = [0.0, 0.0]
    size = problem.evaluator.batch_size
    for first in range(0, len(examples), size):
        pairs = problem.task.pairs(examples[first : first + size])
        own = np.repeat(masks[first : first + size], problem.task.passes, axis=0)
        state = vlp.embed(problem.evaluator.encoder_cache(pairs))
        for stage, units in enumerate(vlp.stages):
            hidden = dict(state.hidden)
            is_last = stage == len(vlp.stages) - 1
            for index in units:
                outputs = []
                for skipped in (False, True):
                    rows = to_device(torch.from_numpy(np.flatnonzero(own[:, index] == skipped)), vlp.device)
                    some = vlp.select_rows(state, rows)
                    started = time.process_time()
                    output = vlp.run_layer(index, some, skipped, pooled_only=is_last)
                    seconds[skipped] += time.process_time() - started
                    outputs.append((rows, output))
                joined = torch.empty(len(own), *output.shape[1:], dtype=output.dtype)
                for rows, output in outputs:
                    joined[rows] = output
                hidden[vlp.layers[index].stream] = joined
            state = state.with_hidden(hidden)
    return seconds[0], seconds[1]


def measure(env: Any, repetitions: int) -> np.ndarray:
    """Return (repetitions, 3) processor times in seconds: episodes, their kept layers, their skip adapters.

    `env` is a vector environment with `order="cycle"`.
    """
    env.reset(seed=0)
    problem = env.problem
    masks = np.random.default_rng(0).random((env.num_envs, len(problem.layer_names))) < SKIP
    for _ in range(1 + len(env.episodes.examples) // env.num_envs):  # encodes all examples
        run_episode(env, masks)
    found = []
    for _ in range(repetitions):
        seconds, places = run_episode(env, masks)
        examples = [env.episodes.examples[place] for place in places.tolist()]
        found.append((seconds, *layer_seconds(problem, examples, masks)))
    return np.array(found)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("per_input", __doc__)
    parser.add_argument("--model", default="METER", choices=("METER", "ViLT"))
    parser.add_argument("--task", default="VQA", choices=("VQA", "NLVR2", "F30K"))
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args(arguments)
    id = f"DAS-{options.model}-{options.task}-PerInput-v0"
    found = measure(gymnasium.make_vec(id, num_envs=options.num_envs, split="test", order="cycle"), options.repetitions)
    episode, layers, adapters = (float(np.median(column)) for column in found.T)
    ratios = found[:, 0] / found[:, 1]
    with_adapters = float(np.median(found[:, 0] / found[:, 1:].sum(1)))
    print(f"{id}, {options.num_envs} environments, {torch.get_num_threads()} threads")
    print(f"episode {1000 * episode:.0f} ms, layers {1000 * layers:.0f} ms, skip adapters {1000 * adapters:.0f} ms")
    print(f"episode / layers: {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})")
    print(f"episode / (layers and skip adapters): {with_adapters:.2f}")


if __name__ == "__main__":
    main()
