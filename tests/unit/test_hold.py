"""A rollback holds until somebody releases it, whatever happens meanwhile."""

from pathlib import Path

import pytest

from include.warehouse import hold, paths
from include.warehouse.__main__ import main
from include.warehouse.errors import UnknownReleaseError, WarehouseError
from include.warehouse.targets import target
from testing.project import unchecked

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three releases: one, two, three."""
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    for number, run_id in enumerate(("one", "two", "three")):
        with target().open_working() as connection:
            connection.execute("create schema if not exists marts")
            connection.execute(f"create or replace table marts.t as select {number} as i")
        target().publish(run_id, unchecked)


def published() -> str:
    found = target().published_release()
    assert found
    return found.id


def test_nothing_is_published_until_the_hold_is_released(capsys: pytest.CaptureFixture[str]) -> None:
    hold.check()
    hold.roll_back("one", by="ann")
    found = hold.current()
    assert found and (found.release, found.instead_of, found.by) == ("one", "three", "ann") and published() == "one"
    with pytest.raises(hold.ReleaseHeldError, match=r"ann rolled readers back to one, instead of three, on 20"):
        target().publish("four", lambda _: hold.check())
    assert published() == "one"
    main(["show"])
    assert "HELD: ann rolled readers back to one" in capsys.readouterr().out
    assert main(["release-hold"]) == 0 and "ann rolled readers back" in capsys.readouterr().out
    target().publish("four", lambda _: hold.check())
    assert published() == "four"
    assert main(["release-hold"]) == 0 and "No rollback holds" in capsys.readouterr().out


def test_going_to_the_newest_release_holds_nothing() -> None:
    hold.roll_back("two")
    hold.roll_back("three")
    assert hold.current() is None


def test_a_rollback_that_fails_leaves_the_hold_as_it_was() -> None:
    with pytest.raises(UnknownReleaseError):
        hold.roll_back("nine")
    assert hold.current() is None
    hold.roll_back("one", by="ann")
    with pytest.raises(UnknownReleaseError):
        hold.roll_back("nine", by="bob")
    found = hold.current()
    assert found and found.by == "ann"


def test_a_run_that_publishes_meanwhile_does_not_undo_the_rollback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rolled_back = type(target()).rollback

    def late(self: object, release: str) -> object:
        with pytest.raises(hold.ReleaseHeldError):
            target().publish("four", lambda _: hold.check())
        return rolled_back(target(), release)  # type: ignore[arg-type]

    monkeypatch.setattr(type(target()), "rollback", late)
    hold.roll_back("one")
    assert published() == "one"


def test_a_hold_that_cannot_be_read_lets_nothing_be_published() -> None:
    hold.roll_back("one")
    (paths.artifacts_dir() / "hold.json").write_text("{")
    with pytest.raises(WarehouseError, match=r"hold.json, which says whether a rollback holds, cannot be read"):
        hold.check()
