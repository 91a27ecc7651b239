"""What the tests share: `pytest crates/python/tests`, with the wheel installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import cutline

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def captioner() -> cutline.Captioner:
    return cutline.Captioner()


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    found = sorted((ROOT / "assets").glob("*.jpg"))
    assert len(found) >= 4
    return found


@pytest.fixture
def cat() -> Iterator[Path]:
    yield ROOT / "assets" / "cat.jpg"
