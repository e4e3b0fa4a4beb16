"""What the daily cleaning removes, and what it leaves."""

import os
import time
from pathlib import Path

import pytest

from include import maintenance
from include.runs import artifacts
from include.warehouse import paths

pytestmark = pytest.mark.unit


def test_old_logs_artifacts_and_nothing_else_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KEEP_DAYS", "30")
    monkeypatch.setattr(artifacts, "_RUNS_KEPT", 2)
    logs = tmp_path / "logs"
    for day, name in ((31, "old"), (29, "new")):
        for file in (logs / "dag_id=x" / f"run_id={name}" / "task_id=t" / "attempt=1.log", logs / f"{name}.log"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("x")
            os.utime(file, (time.time() - day * 86_400,) * 2)
    for number in range(4):
        (paths.artifacts_dir() / f"run-{number}").mkdir(parents=True)
        os.utime(paths.artifacts_dir() / f"run-{number}", (number, number))
    (paths.artifacts_dir() / "hold.json").write_text("{}")

    removed = maintenance.clean(logs)
    assert (removed["logs"], removed["artifacts"]) == (1, 2)
    left = sorted(str(file.relative_to(logs)) for file in logs.rglob("*") if file.is_file())
    assert left == ["dag_id=x/run_id=new/task_id=t/attempt=1.log", "new.log", "old.log"], "processes rotate their own"
    assert not (logs / "dag_id=x" / "run_id=old").exists()
    assert sorted(path.name for path in paths.artifacts_dir().iterdir()) == ["hold.json", "run-2", "run-3"]
    assert maintenance.clean(logs)["logs"] == 0


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_limit_that_cannot_be_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEP_DAYS", value)
    with pytest.raises(ValueError, match=f"KEEP_DAYS must be a whole number of at least 1, not '{value}'"):
        maintenance.keep_days()
