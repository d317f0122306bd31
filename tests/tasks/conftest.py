"""A cache folder of each test's own."""

import pytest

from das_gym.files import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
