"""Settings of training, and of the commands of `python -m adapt` that keep runs."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from das_gym.adapt.paper import RECIPES, DASSettings, pipeline_settings, recipe_problem
from das_gym.agents.settings import SearchConfig

from das_gym.commands.runs import RunSettings
from das_gym.commands.settings import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Seed,
    Settings,
    choice,
    nested,
)
from das_gym.files import check_file
from das_gym.problem.config import ProblemConfig

SAVED_DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Allowed values of the setting for the saved dtype."""

SHARED_SETTINGS = ("problem", "env_id", "seed")
"""Settings that a search has in common with the command that runs it."""

RANKED_IMAGES = 100
"""Default number of images that are ranked with all of their texts; the field's test sets have 1,000."""


@dataclass(frozen=True)
class Hardware(Settings, group="Hardware"):
    """Settings of devices, precision and memory of a training. They change the trained weights by rounding only.

    Attributes:
        micro_batch_size: Examples per forward pass; gradients are accumulated. None takes as many as fit in memory.
        mixed_precision: Mixed precision of accelerate. None takes what `accelerate launch` was given, or none.
        gradient_checkpointing: Whether to recompute activations in the backward pass: less memory, more time.
        trackers: Trackers that get the metrics too, besides the run's own record.
        encoder_cache_gib: Memory for outputs of the frozen encoders, in GiB. 0 keeps none. None is 2 on a CPU, a quarter of
            the free memory of a GPU.
        dataloader_num_workers: Processes that read and augment images ahead. 0 reads them in the training process.
    """

    micro_batch_size: PositiveInt | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    gradient_checkpointing: bool = False
    trackers: tuple[str, ...] = choice((), ("tensorboard", "wandb"))
    encoder_cache_gib: NonNegativeFloat | None = None
    dataloader_num_workers: NonNegativeInt = 0


@dataclass(frozen=True)
class TrainingConfig(Hardware, group="Training"):
    """Settings of a training, including those of `Hardware`. The defaults suit fine-tuning.

    Attributes:
        seed: Random seed, of new parameters and the order of examples among others.
        steps: Number of training steps.
        batch_size: Examples per step. None means about 64 pairs of text and image (96 in `supernet`), or the paper's batch
            size for a model of base size.
        learning_rate: Peak learning rate of adapters, poolers and token types. None means 1e-3 (2e-3 in `supernet`), or the
            paper's for a model of base size.
        head_learning_rate: Peak learning rate of the task head. None means 1e-3 (2e-3 in `supernet`), or the paper's for a
            model of base size.
        itm_weight: Weight of the image-text-matching loss of the checkpoint's frozen matching head, for retrieval. 0 leaves
            it out.
        save_every: Steps between checkpoints.
    """

    pairs_per_step: ClassVar[int] = 64
    default_learning_rate: ClassVar[float] = 1e-3
    warmup: ClassVar[float] = 0.1  # fraction of the steps in which the learning rate rises; it then falls linearly to 0

    seed: Seed = 0
    steps: PositiveInt = 300
    batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    head_learning_rate: PositiveFloat | None = None
    itm_weight: NonNegativeFloat = 0.0
    save_every: PositiveInt = 100


@dataclass(frozen=True)
class SupernetConfig(TrainingConfig, group="Training"):
    """Settings of supernet training. The defaults trained the bundled supernets.

    Attributes:
        max_skipped: Each step skips 0 to `max_skipped` random layers.
        vocabulary: File with the task's labels, such as the answers of VQA. None chooses them from the training data.
        min_answer_count: Answers that occur at least so often in the training data are labels. None leaves the choice to
            the task.
    """

    pairs_per_step: ClassVar[int] = 96
    default_learning_rate: ClassVar[float] = 2e-3
    warmup: ClassVar[float] = 0.05

    steps: PositiveInt = 4000
    save_every: PositiveInt = 250
    max_skipped: NonNegativeInt = 8
    vocabulary: str | None = None
    min_answer_count: PositiveInt | None = None


@dataclass(frozen=True)
class SearchingSettings(RunSettings, group="Search and evaluation"):
    """Settings shared by the commands that search masks of a model and its data.

    Attributes:
        problem: Model and data.
        seed: Random seed.
        search: Settings of the search that runs first, as in `evaluations=100`, `agent=bandit`. `python -m agents --help`
            lists them.
        test_examples: Number of test examples to evaluate on. None evaluates on all.
    """

    problem: ProblemConfig = nested(ProblemConfig)
    seed: Seed = 0
    search: SearchConfig = nested(SearchConfig, shared=SHARED_SETTINGS, listed=False)
    test_examples: PositiveInt | None = None

    @property
    def env_id(self) -> str:
        """The environment of the search."""
        return self.problem.env_id


@dataclass(frozen=True)
class ChoosingSettings(SearchingSettings, group="Layers"):
    """Which mask a command takes.

    Attributes:
        search_run: Id of the search whose mask, model and data are used, or of a run of `python -m agents pareto`, with
            `point`. If neither this nor `mask` is given, a search runs first.
        point: Number of a point of the Pareto front of `search_run`, from 0 on.
        mask: Mask to use, as in [0,1,0,0]: one number per layer, 1 = skipped.
    """

    search_run: int | None = None
    point: NonNegativeInt | None = None
    mask: tuple[Annotated[int, Range(0, 1)], ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is not None and self.search_run is not None:
            raise ValueError(f"both `mask` and `search_run`={self.search_run} are given; give one of them")
        if self.point is not None and self.search_run is None:
            raise ValueError(f"`point`={self.point} is of a Pareto front: give its run too, as search_run=RUN")
        counts = None if self.mask is None else self.problem.unit_counts
        if self.mask is not None and counts is not None and len(self.mask) not in counts:
            expected = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]
            raise ValueError(f"`mask` has the wrong length: got {len(self.mask)} numbers, expected {expected}")

    @property
    def needs_search(self) -> bool:
        """Whether a search runs first."""
        return self.mask is None and self.search_run is None


@dataclass(frozen=True)
class FirstSearch(SearchConfig):
    """Settings of the search of `python -m adapt`.

    Attributes:
        evaluations: Number of masks that the agent may score. None means 240, or 80 for `bayes` on a model of up to 12
            layers.
    """

    evaluations: PositiveInt | None = None  # type: ignore[assignment]


@dataclass(frozen=True)
class AdaptSettings(ChoosingSettings, group="Search and evaluation"):
    """The settings of `python -m adapt`. A search run brings its own model and data.

    Attributes:
        train: Settings of fine-tuning.
        rank_images: Number of test images that retrieval ranks, with all of their texts. None ranks all.
        references: Whether to train and evaluate the full model with adapters and the baseline as well. Each takes as long
            as the subnet, unless the package contains its trained weights, as it does for the default settings. Without
            references, the table has the subnet and the costs of the baseline.
    """

    search: FirstSearch = nested(FirstSearch, shared=SHARED_SETTINGS, listed=False)
    train: TrainingConfig = nested(TrainingConfig, shared=("seed",))
    rank_images: PositiveInt | None = RANKED_IMAGES
    references: bool = True


@dataclass(frozen=True)
class JointSearchSettings(RunSettings, group="Pipeline"):
    """The settings of `python -m adapt das`.

    Attributes:
        problem: Model and data.
        recipe: Defaults of the pipeline: those of das_gym, or of the paper (the named config `paper`).
        das: Settings of the pipeline that differ from the recipe, as in `das.skip_num=4`, `das.search_epochs=5`. `python
            -m adapt paper` prints them.
        references: Whether to fine-tune and evaluate the full model with adapters as well. This takes as long again as the
            subnet.
        seed: Random seed.
        train: What training runs on.
        test_examples: Number of test examples to evaluate on. None evaluates on all.
        rank_images: Number of test images that retrieval ranks, with all of their texts. None ranks all, as in the paper.
        save_every: Steps between checkpoints.
    """

    problem: ProblemConfig = nested(ProblemConfig)
    recipe: str = choice(RECIPES[0], RECIPES)
    das: dict[str, Any] = nested(DASSettings, listed=False, default=dict)
    references: bool = True
    seed: Seed = 0
    train: Hardware = nested(Hardware)
    test_examples: PositiveInt | None = None
    rank_images: PositiveInt | None = RANKED_IMAGES
    save_every: PositiveInt = 100

    @cached_property
    def pipeline(self) -> DASSettings:
        """The settings of the pipeline. Adapter widths that are not given are left to a checkpoint that may have some."""
        return pipeline_settings(self.problem.model, self.problem.task, self.recipe, self.das)

    @cached_property
    def recipe_problem(self) -> ProblemConfig:
        """Model and data with the lengths of the recipe; its image size is for a checkpoint that is given."""
        return recipe_problem(self.problem, self.pipeline)


@dataclass(frozen=True)
class SupernetSettings(RunSettings, group="Training"):
    """The settings of `python -m adapt supernet`.

    Attributes:
        problem: Model and data.
        out: File to write. None is `supernet.safetensors` in the run's folder.
        seed: Random seed.
        train: Settings of training.
    """

    problem: ProblemConfig = nested(ProblemConfig)
    out: str | None = None
    seed: Seed = 0
    train: SupernetConfig = nested(SupernetConfig, shared=("seed",))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file(self.out, may_exist=self.resume is not None)  # a stopped run may have written it
        supernet = self.problem.supernet
        if supernet is not None:
            raise ValueError(f"supernet={supernet}: this command trains a new one; leave supernet out, or see out=")
