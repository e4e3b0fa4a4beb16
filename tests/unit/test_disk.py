"""A disk that fills is reported before a run fails."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from include.warehouse import disk, paths

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("free", "working", "short"), [(6_000, 0, False), (4_999, 0, True), (6_000, 3_001, True), (6_000, 3_000, False)]
)
def test_space_for_a_load_and_a_release_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, working: int, short: bool
) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=100_000, free=free))
    paths.working_path().write_bytes(b"x" * working)
    assert bool(found := disk.shortage()) is short
    assert not short or (str(tmp_path) in found and "Free some space" in found)
