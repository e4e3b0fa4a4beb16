"""Fixtures of the publish tests."""

from pathlib import Path

import pytest


@pytest.fixture
def warehouse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of an empty warehouse for this test alone."""
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.setenv("WAREHOUSE_KEEP_RELEASES", "3")
    monkeypatch.setenv("WAREHOUSE_LOCK_TIMEOUT", "20")
    return tmp_path
