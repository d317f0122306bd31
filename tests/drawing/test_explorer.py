from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_gym.drawing.explorer import write_explorer
from das_gym.engine.scores import Scores
from das_gym.problem.mask_space import every_mask
from das_gym.tables.table import SubnetTable, TableMeta
from tests.browser import check_accessible, check_fits, needs_browser, open_page


@pytest.fixture(scope="module")
def table() -> SubnetTable:
    """Made-up scores of every mask of 6 layers; that of all skipped has an infinite loss."""
    meta = TableMeta(
        env_id="DAS-METER-VQA-v0",
        layer_names=tuple(f"{stream}.{i}" for stream in ("text", "image") for i in range(3)),
        metric_name="accuracy",
        macs_full=1000,
        reward_examples=8,
        test_examples=4,
        statistics=("depth",),
        hashes={},
        versions={},
    )
    masks, rng = every_mask(6), np.random.default_rng(0)
    scores = {s: Scores(*(rng.uniform(0.1, 3, 64).astype(np.float32) for _ in range(3))) for s in ("reward", "test")}
    for each in scores.values():
        each.metrics[:] = np.exp(-each.losses)
    scores["reward"].losses[-1] = np.inf
    macs = 1050 - masks.astype(np.int64) @ np.array([50, 50, 20, 100, 100, 20])
    depth = np.tile(np.linspace(0, 1, 3, dtype=np.float32), 2)[:, None]
    return SubnetTable(meta, scores, macs, depth)


@pytest.fixture(scope="module")
def page(table: SubnetTable, chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_page(chromium, write_explorer(tmp_path_factory.mktemp("explorer") / "page.html", table))


def read_values(page: Any) -> dict[str, str]:
    return {name: page.inner_text(f"#{name}") for name in ("loss", "metric", "saved", "count", "rank")}


def wanted(table: SubnetTable, mask: np.ndarray, split: str = "reward", **budget) -> dict[str, str]:
    known, within = table.describe(mask), table.within(**budget)
    losses = table.values("loss", split)
    rank = 1 + int((losses[within] < known[f"{split}_loss"]).sum())
    keeps = within[table.index(mask)] and np.isfinite(known[f"{split}_loss"])
    return {
        "loss": f"{known[f'{split}_loss']:.4f}" if np.isfinite(known[f"{split}_loss"]) else "not finite",
        "metric": f"{100 * known[f'{split}_metric']:.1f} %",
        "saved": f"{100 * known['macs_saved']:.1f} %",
        "count": f"{int(np.sum(mask))} of {table.n_layers}",
        "rank": f"{rank} of {int(within.sum())}" if keeps else "off the budget",
    }


def pressed(page: Any) -> np.ndarray:
    return np.array([box.get_attribute("aria-pressed") == "true" for box in page.query_selector_all("button.unit")])


def slide(page: Any, name: str, value: float) -> None:
    page.fill(f"#{name}", f"{value:g}")


def mask_of(page: Any, table: SubnetTable) -> np.ndarray:
    """The page shows units stage by stage; masks have the table's order."""
    names = [box.inner_text() for box in page.query_selector_all("button.unit .name")]
    return pressed(page)[[names.index(name) for name in table.meta.layer_names]]


def reset_page(page: Any) -> None:
    page.click("#nothing")
    page.check("[name=split][value=reward]")
    slide(page, "least", 0)
    page.uncheck("#exactly")


def test_explorer_holds_its_own_texts(table: SubnetTable, tmp_path: Path):
    text = write_explorer(tmp_path / "page.html", table).read_text()
    assert "<dt>rank by loss</dt>" in text
    assert "skipping nothing saves less than nothing" in text
    assert "<dt>reward</dt>" not in text  # a report's
    assert "The adapters add 5.0 % MACs" in text
    text = write_explorer(tmp_path / "b.html", replace(table, macs=table.macs - 50)).read_text()
    assert "The adapters add" not in text


@pytest.mark.slow
@needs_browser
def test_click_skips_a_unit_and_shows_the_masks_values(page: Any, table: SubnetTable):
    reset_page(page)
    mask = np.zeros(6, bool)
    assert read_values(page) == wanted(table, mask)
    for name in ("image.1", "text.0", "image.1", "text.2"):
        page.click(f"button.unit:has-text('{name}')")
        mask[table.meta.layer_names.index(name)] ^= True
        assert read_values(page) == wanted(table, mask)
        np.testing.assert_array_equal(mask_of(page, table), mask)
    page.wait_for_selector("#status:has-text('Skipped: text.0, text.2. Loss')")
    page.check("[name=split][value=test]")
    assert read_values(page) == wanted(table, mask, "test")
    for box in page.query_selector_all("button.unit[aria-pressed=false]"):
        box.click()
    page.check("[name=split][value=reward]")
    assert read_values(page)["loss"] == "not finite"


@pytest.mark.slow
@needs_browser
def test_sliders_set_the_budget(page: Any, table: SubnetTable):
    reset_page(page)
    page.click("button.unit:has-text('text.0')")
    one = np.eye(6, dtype=bool)[0]
    page.check("#exactly")
    slide(page, "k", 2)
    assert read_values(page) == wanted(table, one, skip_num=2)
    assert page.inner_text("#within").startswith(f"{table.within(skip_num=2).sum()} masks keep it.")
    page.click("#best")
    np.testing.assert_array_equal(mask_of(page, table), table.best(skip_num=2))
    assert read_values(page) == wanted(table, table.best(skip_num=2), skip_num=2)
    assert read_values(page)["rank"].startswith("1 of ")
    page.uncheck("#exactly")
    slide(page, "least", 20)
    page.click("#best")
    best = table.best(macs_saved=0.2)
    assert read_values(page) == wanted(table, best, macs_saved=0.2)
    page.check("#exactly")
    slide(page, "k", 0)
    assert page.inner_text("#within") == "No mask of the table keeps this budget."
    assert page.is_disabled("#best")


@pytest.mark.slow
@needs_browser
def test_everyone_can_read_it(page: Any, tmp_path: Path):
    page.click("figure summary")
    page.wait_for_selector("figure details td")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        check_accessible(page)
    check_fits(page)
    assert page.wrong == []
