"""The environment of DAS: choose which layers of a frozen vision-language model to skip."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from das_gym.commands.settings import build
from das_gym.envs.engine_scoring import EngineScorer
from das_gym.envs.episodes import ScoredEnv, ScoredVectorEnv
from das_gym.names import brief, check_arguments
from das_gym.problem.budget import BUDGET_SETTINGS, SAVED
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem, load_problem
from das_gym.registration import DEFAULT_MODEL, DEFAULT_TASK


class SkipEnv(ScoredEnv, gymnasium.Env[Any, Any]):
    """Which layers can this task do without?

    ## Description
    A frozen vision-language model has `n_layers` skippable layers, and a skip adapter that can replace each of them. The
    agent observes layer statistics of the full model, chooses the layers to skip, and is rewarded by how well the subnet
    does on the reward split.

    ## Action Space
    `action="mask"`: `MultiBinary(n_layers)`, a skip mask, 1 = skipped. METER: 0-5 text fusion layers, 6-11 image fusion
    layers. ViLT: 0-11 blocks. Masks may break the budget.
    `action="sequence"`: `Discrete(n_layers)`, one layer after another until the budget is spent; without any budget there
    is one more action, n_layers = stop. `action_masks()` and `info["action_mask"]` (n_choices bools) mark the
    actions that have an effect. Any other action is replaced by the next one that has an effect, wrapping around, and
    `info["invalid_action"]` is True. With a budget by cost, layers whose skipping saves nothing have no effect.
    `action="scores"`: `Box(-1, 1, (n_layers,))`, a score for every layer. The `skip_num` highest are skipped; with a budget
    by cost the highest until the saving is reached; without a budget those above 0. Of equal scores, the first layer's.
    An action of another shape, or outside the space, raises a ValueError.

    ## Observation Space
    `Box((n_layers * n_statistics,), float32)` with finite bounds: the layer statistics of the full model, layer by layer;
    `feature_names` names the entries. It is the same at every reset.
    `action="sequence"` appends n_layers + 2 numbers: 1 for each layer skipped so far, the share of MACs saved so far, and
    the remaining budget (0..1: layers / n_layers, or share of the cost).

    ## Rewards
    By default `exp(-loss)`, for text `perplexity_ratio`, from the loss of the subnet on the reward split in eval mode, plus
    `macs_price` * (share of MACs saved). A mask that breaks the budget is not evaluated: its reward is the lowest one minus
    the share of layers, or of the cost, by which it misses the budget; `loss` is inf and `metric` 0. In a sequence, the
    reward is 0 before the last step.

    ## Starting State
    The layer statistics, nothing skipped. `info` describes the full model.

    ## Episode End
    `mask` and `scores`: every step terminates. `sequence`: terminates when `skip_num` layers are skipped, when the saving
    is reached, or at "stop"; if the full model satisfies the budget, at the first step. Nothing is truncated.

    ## Information
    `info` always holds, as plain numbers: `loss` (nats), `metric` (0..1), `macs` (of one example), `macs_saved`
    (share of the MACs of the model without adapters), `n_skipped`, `feasible` (the budget is satisfied), and `evaluations`
    (masks scored so far, including those of the observation: none by default, n_layers + 1 for the statistic
    `leave_one_out`, none from a table). Within a sequence they describe the layers skipped so far, which are not scored:
    `loss` is inf, `metric` 0.
    With a budget of another cost, `info` also holds the share saved, such as `latency_saved`. `action="sequence"` adds
    `action_mask` and `invalid_action`.

    ## Arguments
    See `Args`. Through wrappers, attributes are reached with `env.get_wrapper_attr("feature_names")`; `last_mask` is the
    mask that the last step scored.

    ## Vectorized environment
    `gymnasium.make_vec(id, num_envs=n)` scores the masks that a step completes on the same examples in one engine call.

    ## References
    DAS: arXiv 2309.01479.

    ## Version History
    v0: first.

    Args:
        skip_num: Budget: exactly how many layers to skip. None allows any number; "auto" is 4, or None if a share to
            save is given.
        macs_saved: Budget: least share of MACs to save, such as 0.12, instead of `skip_num`.
        action: `mask`, `sequence` or `scores`.
        reward: Name of the reward, see `das_gym.problem.rewards.REWARDS`; None is the task's own.
        macs_price: Reward that is added for saving all MACs of the full model; for a part of them, a proportional part.
        statistics: Names of the statistics to observe, or one name (`das_gym.problem.statistics.STATISTICS`); None =
            `DEFAULT_STATISTICS`, for which no mask is scored.
        reward_examples: Examples that score a mask; None is the task's own number: 500, or 64 for retrieval and text.
        reward_batches: Which examples a step uses: `fixed` (always the same), `cycle` (the next ones, starting again at
            the end of the reward split) or `resample` (drawn from `np_random`).
        model: `METER`, `ViLT`, or another key of `das_gym.registration.MODELS`; the id sets it.
        task: `vqa`, `nlvr2`, `retrieval`, or another key of `das_gym.registration.TASKS`; the id sets it.
        render_mode: `ansi` (the units of each stage in words), `rgb_array` (an image of the architecture) or
            None; `gymnasium.make` takes `human`, too.
        latency_batch: Examples per forward pass when latency is measured.
        costs: Costs of masks that are known already: as `das_gym.problem.budget.given_costs` takes them, or the
            path of a file. Records of searches hold them, so that budgets allow the same masks on any machine.
        problem: The problem, instead of `model`, `task` and their settings: `gymnasium.make("DAS-v0", problem=problem)`.
            Such an environment cannot be pickled, and its spec cannot be written as JSON.
        settings: `latency_saved`, `parameters_saved`, `memory_saved`: budgets like `macs_saved`, of the latency that each
            unit has on this machine (`das_gym.problem.latency`), of parameters, or of the bytes of the weights. And
            model and data: the fields of `das_gym.problem.config.ProblemConfig`.

    Raises:
        ValueError: a setting that is not allowed.
        FileNotFoundError: a path that does not exist.

    Example:
        >>> import gymnasium
        >>> import das_gym
        >>> env = gymnasium.make("DAS-METER-VQA-v0", skip_num=4, reward_examples=16)
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step([1, 1, 1, 1] + 8 * [0])
    """

    def __init__(
        self,
        skip_num: int | str | None = "auto",
        macs_saved: float | None = None,
        action: str = "mask",
        reward: str | None = None,
        macs_price: float = 0.0,
        statistics: str | Iterable[str] | None = None,
        reward_examples: int | None = None,
        reward_batches: str = "fixed",
        model: str = DEFAULT_MODEL,
        task: str = DEFAULT_TASK,
        render_mode: str | None = None,
        latency_batch: int = 1,
        costs: Mapping[str, Any] | str | None = None,
        problem: Problem | None = None,
        **settings: Any,
    ) -> None:
        own = inspect.signature(SkipEnv).parameters
        check_arguments(settings, [*own, *BUDGET_SETTINGS, *ProblemConfig.__dataclass_fields__])
        budget = {"skip_num": skip_num, "macs_saved": macs_saved}
        budget |= {name: settings.pop(name) for name in SAVED if name in settings}
        if problem is not None:
            check_problem(problem, settings)
        problem = problem or load_problem(build(ProblemConfig, {"model": model, "task": task, **settings}))
        scorer = EngineScorer(
            problem, budget, reward, macs_price, statistics, reward_examples, reward_batches, costs, latency_batch
        )
        super().__init__(scorer, action, render_mode)


def check_problem(problem: object, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for what is no `Problem`, and for settings of model and data, which it has already."""
    if not isinstance(problem, Problem):
        got = "none" if problem == "" else brief(problem)
        raise ValueError(f"`problem` is not a Problem: got {got}. Give one that das_gym.Problem.from_model(...) returned")
    for name in settings:
        raise ValueError(f"`{name}` is a setting of the Problem: got {brief(settings[name])}. Give it where that is made")


class SkipVectorEnv(ScoredVectorEnv, VectorEnv[Any, Any, Any]):
    """`num_envs` copies of `SkipEnv`, see `ScoredVectorEnv`: a step scores all their masks in one engine call."""

    env_class = SkipEnv
