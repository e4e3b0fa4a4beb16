"""Killing publish or rollback before any of its lines, and locking while they run."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import duckdb
import pytest

from include.warehouse.paths import published_path, working_path
from include.warehouse.targets import duckdb_file, target
from testing.project import unchecked

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("warehouse")]

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["duckdb"])


def build(generation: int) -> None:
    with target().open_working() as connection:
        connection.execute("create schema if not exists marts")
        connection.execute(f"create or replace table marts.customers as select {generation} as g from range(100)")


def seen() -> int:
    with duckdb.connect(str(published_path()), read_only=True) as connection:
        row = connection.execute("select min(g), max(g), count(*) from marts.customers").fetchone()
    assert row is not None and row[0] == row[1] and row[2] == 100
    return int(row[0])


def litter(warehouse: Path) -> list[str]:
    return [
        path.name
        for folder in ("releases", "published")
        for path in (warehouse / folder).iterdir()
        if path.name != ".lock" and path.suffix != ".duckdb"
    ]


READ_ONLY = {"release_id", "keep_releases", "_list_releases", "_read_release", "_record", "_key", "_same_file"}


def on_each_new_line(act: Callable[[str], None]) -> None:
    """Call `act` with the function's name before each line that has not run yet, except in read-only functions."""
    known: set[int] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != duckdb_file.__file__ or frame.f_code.co_name in READ_ONLY:
            return None
        if event == "line" and frame.f_lineno not in known:
            known.add(frame.f_lineno)
            act(frame.f_code.co_name)
        return trace

    sys.settrace(trace)


def killed_before_line(number: int, step: str, run_id: str) -> int:
    """Publish or roll back in a child process, kill it before its nth line, and return its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    passed = 0

    def count(_: str) -> None:
        nonlocal passed
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    on_each_new_line(count)
    target().publish(run_id, unchecked) if step == "publish" else target().rollback(run_id)
    os._exit(0)


def serve_kills(commands: Any, environment: dict[str, str]) -> None:
    """Answer each (number, step, run id) with the exit code, in a process with no open DuckDB, so that it can fork."""
    os.environ.update(environment)
    while request := commands.recv():
        commands.send(killed_before_line(*request))


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("step", ["publish", "rollback"])
def test_a_kill_before_any_line_leaves_a_whole_release_published(step: str, every: int, warehouse: Path) -> None:
    commands, theirs = PROCESSES.Pipe()
    killer = PROCESSES.Process(target=serve_kills, args=(theirs, warehouse_environment()), daemon=True)
    killer.start()
    build(1)
    target().publish("before", unchecked)
    build(2)
    target().publish("next", unchecked)
    if step == "rollback":
        target().publish("target", unchecked)
    for number in range(0, 1000, every):
        target().rollback("before")
        content = published_path().read_bytes()
        commands.send((number, step, "target"))
        code = commands.recv()

        after = target().published_release()
        assert after is not None
        if after.id == "before":
            assert published_path().read_bytes() == content
        else:
            assert after.id == "target" and published_path().read_bytes() == Path(after.location).read_bytes()
            assert seen() == 2
        if code == 0:
            break
        assert code == -signal.SIGKILL
        following = (
            partial(target().publish, check=unchecked) if step == "publish" and number % 4 == 1 else target().rollback
        )
        assert following("next") == target().published_release()
        assert seen() == 2
        assert litter(warehouse) == []
    commands.send(None)
    killer.join()
    assert after.id == "target" and number > (50 if step == "publish" else 20), "the trace did not reach the steps"


def warehouse_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WAREHOUSE_")}


def test_after_a_kill_during_cp_the_next_rollback_waits_for_cp(
    monkeypatch: pytest.MonkeyPatch, warehouse: Path
) -> None:
    build(1)
    target().publish("old", unchecked)
    tools = warehouse / "tools"
    tools.mkdir()
    (tools / "cp").write_text('#!/bin/sh\nsleep 1\n/bin/cp "$@"\ntouch "$WAREHOUSE_DIR/copied"\n')
    (tools / "cp").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    process = PROCESSES.Process(target=killed_in, args=("_await_copy", environment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (warehouse / "copied").exists()
    target().rollback("old")
    assert (warehouse / "copied").exists()
    assert litter(warehouse) == []
    target().publish("new", unchecked)
    assert seen() == 1


def killed_in(function: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    on_each_new_line(lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == function else None)
    target().publish("new", unchecked)


def intruder(path: str, commands: Any) -> None:
    while commands.recv():
        try:
            duckdb.connect(path).close()
            commands.send("opened")
        except duckdb.IOException as error:
            commands.send(str(error))


def test_no_other_process_can_write_during_a_publish(warehouse: Path) -> None:
    """Guards against opening the working database's file in-process: closing it would drop DuckDB's lock."""
    build(1)
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=intruder, args=(str(working_path()), theirs), daemon=True)
    process.start()
    answers: list[tuple[str, str]] = []

    def try_to_write(function: str) -> None:
        if function in {"_stamp_and_checkpoint", "_copy", "_await_copy", "_verify", "_show_to_readers"}:
            ours.send(True)
            answers.append((function, ours.recv()))

    try:
        on_each_new_line(try_to_write)
        target().publish("one", unchecked)
    finally:
        sys.settrace(None)
        ours.send(False)
        process.join()
    assert {function for function, _ in answers} >= {"_stamp_and_checkpoint", "_copy", "_verify", "_show_to_readers"}
    assert [answer for answer in answers if "Conflicting lock is held" not in answer[1]] == []
    build(2)  # and afterwards the lock is free again
