"""Fixtures that several rooms share: a tiny METER with a supernet, and a tiny data set in VQAv2's format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from das_gym.commands.trust import IMPORTED_PLUGINS
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone
from das_gym.problem.problem import Problem, build_problem
from das_gym.registration import ASSETS, METRICS
from das_gym.shapes.vqa import write_shapes
from das_gym.tables.build import build_table
from das_gym.tables.table import SubnetTable
from das_gym.tasks.vqa.files import answer_vocabulary, load_vqa
from das_gym.tasks.vqa.task import VQATask
from tests.browser import CHROMIUM
from tests.registered import as_before
from tests.small_world import small_world

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory) -> Path:
    """A few scenes and their questions."""
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", seed=5, train_scenes=40, val_scenes=40)


@pytest.fixture(scope="session")
def random_supernet(tmp_path_factory, shapes_folder) -> Path:
    """A supernet of METER-mini for `shapes_folder` whose parameters are random and large: masks differ a lot."""
    backbone = load_backbone(ProblemConfig())
    task = VQATask(backbone.processor, answer_vocabulary(load_vqa(shapes_folder).train, min_count=1))
    torch.manual_seed(1)
    head = task.build_head(backbone.vlp.feature_size)
    for parameter in [*backbone.vlp.tunable_state().values(), *head.parameters()]:
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("supernet") / "supernet.safetensors"
    Adaptation.from_model(backbone.vlp, head, task="vqa", answers=task.labels, base=backbone.base).save(path)
    return path


@pytest.fixture(scope="session")
def tiny_kwargs(shapes_folder, random_supernet) -> dict[str, str]:
    """What to pass to `gymnasium.make` for the tiny problem."""
    return {"data_root": str(shapes_folder), "supernet": str(random_supernet)}


@pytest.fixture(scope="session")
def tiny_problem(tiny_kwargs) -> Problem:
    """The tiny problem itself; do not train it."""
    return build_problem(ProblemConfig(**tiny_kwargs))


@pytest.fixture(scope="session")
def made_up_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 8 layers, 256 masks, as if it were METER's on VQA."""
    from tests.agents.landscapes import write_table

    return write_table(tmp_path_factory.mktemp("tables") / "meter_vqa_table.npz")


@pytest.fixture(scope="session")
def mini_folder() -> Path:
    """The bundled checkpoint."""
    return ASSETS / "meter_mini"


@pytest.fixture(scope="session")
def small_kwargs(tmp_path_factory, shapes_folder) -> dict[str, str]:
    """As `tiny_kwargs`, of a random METER with 6 layers: all of its 64 masks are scored in no time."""
    return small_world(tmp_path_factory.mktemp("small"), shapes_folder)


@pytest.fixture(scope="session")
def bare_kwargs(small_kwargs) -> dict[str, str]:
    """As `small_kwargs`, without the supernet."""
    return {name: value for name, value in small_kwargs.items() if name != "supernet"}


@pytest.fixture(scope="session")
def small_problem(small_kwargs) -> Problem:
    """The problem of `small_kwargs`, scored 4 examples at a time; do not train it."""
    return build_problem(ProblemConfig(**small_kwargs, eval_batch_size=4))


@pytest.fixture(scope="session")
def small_table(small_problem) -> SubnetTable:
    """Its table, of 10 reward and 6 test examples."""
    return build_table(small_problem, "DAS-METER-VQA-v0", 10, 6)[0]


@pytest.fixture(scope="session")
def small_table_file(small_table, tmp_path_factory) -> str:
    """The file of `small_table`; do not write there."""
    path = tmp_path_factory.mktemp("table") / "table.npz"
    small_table.save(path)
    return str(path)


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny LLaVA, and conversations about images: 12 to train on, 6 to score, 6 to report. Do not write there."""
    from tests.models.transformers import tiny
    from tests.tasks.answering import making

    folder = tmp_path_factory.mktemp("tiny_llava")
    data = making.llava_folder(folder / "data", train=12, val=6, test=6)
    return {"checkpoint": str(tiny.save("llava", folder / "llava")), "data_root": str(data)}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser for the pages of all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """Forget the plugins that a test imports: printed commands and records would name them in later tests."""
    before = list(IMPORTED_PLUGINS)
    IMPORTED_PLUGINS.clear()
    yield
    IMPORTED_PLUGINS[:] = before


@pytest.fixture
def own_metrics() -> Iterator[None]:
    """Forget the metrics that a test registers."""
    with as_before(METRICS):
        yield
