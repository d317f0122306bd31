"""Settings of `python -m adapt compare`."""

from collections import ChainMap
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from das_gym.adapt.methods import MASKED, METHODS
from das_gym.adapt.settings import SHARED_SETTINGS, FirstSearch, SearchingSettings, TrainingConfig
from das_gym.adapt.shrinking.settings import AnsweringSettings, RecoveryConfig
from das_gym.agents.ask_tell.base import AGENTS, check_agent_name

from das_gym.commands.settings import NonNegativeInt, PositiveFloat, PositiveInt, choice, nested
from das_gym.names import check_distinct, check_names
from das_gym.problem.budget import BUDGET_SETTINGS, BudgetSettings
from das_gym.registration import METRICS

COMPARED = ("bayes", "random", "uniform", "block_influence", "leave_one_out", "greedy", "evopress")
"""Agents that are compared by default: `bayes`, random search, rules and searches of papers, see `docs/comparison.md`."""

EVALUATIONS = 120
TEST_EXAMPLES = 500
"""Defaults of a removal: masks that each agent may score, and examples that each smaller model answers."""


@dataclass(frozen=True)
class CompareSettings(SearchingSettings, BudgetSettings, group="Comparison"):
    """The settings of `python -m adapt compare`.

    Attributes:
        methods: Methods of fine-tuning, or agents that choose layers to remove. Empty means all methods of fine-tuning that
            the model supports, or, with a budget, nine agents.
        seed: Random seed of the first trial of each method.
        seeds: Number of trials of each method, with seeds from `seed` on. None means 3 trainings, or 1 removal. Agents
            without randomness run once.
        test_examples: Number of test examples to evaluate on. None means all after fine-tuning, and 500 after a removal.
        skip_num: Exactly how many layers agents remove. If they have no budget, at least 20 % of the MACs are saved.
        skip_nums: Numbers of layers that DAS skips. Each gets a row with searched layers and a row with random layers.
        method_settings: Settings of methods of fine-tuning, as in `method_settings.lora.rank=8`.
        learning_rates: Learning rates of fine-tuning to choose from on the reward split. Empty means 5e-4, 2e-3 and 8e-3, or
            a quarter, once and four times the paper's for a model of base size.
        train: Settings of fine-tuning.
        recovery: Settings of the recovery after a removal, as in `recover=none`, `recovery.steps=100`.
        search: Settings of the searches, as in `reward_examples=100`. `python -m agents --help` lists them.
        metric: Score of generated answers after a removal: the task's, or one of `register_metric`. None means the task's.
    """

    methods: tuple[str, ...] = choice((), ChainMap[str, Any](METHODS, AGENTS), others=True)
    seeds: PositiveInt | None = None
    skip_num: PositiveInt | None = None
    skip_nums: tuple[NonNegativeInt, ...] = (2, 4, 6)
    method_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    learning_rates: tuple[PositiveFloat, ...] = ()
    train: TrainingConfig = nested(
        TrainingConfig, ("seed",), ("learning_rate", "head_learning_rate"), default=partial(TrainingConfig, steps=600)
    )
    recovery: RecoveryConfig = nested(RecoveryConfig, shared=("seed",))
    search: FirstSearch = nested(FirstSearch, shared=SHARED_SETTINGS, without=BUDGET_SETTINGS, listed=False)
    metric: str | None = choice(None, METRICS, own=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("methods", "learning_rates", "skip_nums"):
            check_distinct(name, getattr(self, name))
        if self.removes_layers:
            for agent in self.methods:
                check_agent_name(agent)
            _ = self.removal  # raises for settings that do not go together
            return
        check_names(self.methods, ChainMap(METHODS, AGENTS), "methods", own=True)
        named = self.methods or tuple(METHODS)
        check_names(self.method_settings, named, "method in `method_settings`")
        if not self.skip_nums and MASKED in named:
            raise ValueError("`skip_nums` is empty: expected one or more numbers. Give skip_nums=[4], or leave das out.")

    @property
    def removes_layers(self) -> bool:
        """Whether agents that choose the layers to remove are compared, and not methods of fine-tuning."""
        has_budget = any(getattr(self, name) is not None for name in BUDGET_SETTINGS)
        return has_budget or any(name in AGENTS or ":" in name for name in self.methods)

    @cached_property
    def removal(self) -> AnsweringSettings:
        """The settings of a removal with the first seed."""
        budget = {name: getattr(self, name) for name in BUDGET_SETTINGS}
        return AnsweringSettings(
            **budget,
            problem=self.problem,
            seed=self.seed,
            search=replace(self.search, evaluations=self.search.evaluations or EVALUATIONS),
            train=self.recovery,
            metric=self.metric,
            test_examples=self.test_examples or TEST_EXAMPLES,
        )

    @property
    def trial_seeds(self) -> range:
        """The seeds of the trials of a method."""
        return range(self.seed, self.seed + (self.seeds or (1 if self.removes_layers else 3)))

    @property
    def nums_to_search(self) -> tuple[int, ...]:
        """Numbers of layers for which DAS needs a search."""
        return tuple(k for k in self.skip_nums if k) if MASKED in (self.methods or METHODS) else ()

    def check_skip_nums(self, n_layers: int) -> None:
        """Raise ValueError if a row of the table skips more layers than the model has."""
        if MASKED in (self.methods or METHODS) and max(self.skip_nums) > n_layers:
            raise ValueError(
                f"`skip_nums` is out of range: got {list(self.skip_nums)}, expected 0..{n_layers}, the layers of the model"
            )
