"""The incident page: what is failing, since when, which rows, who is affected, what to do."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import select
from sqlalchemy.orm import Session

from include.runs import artifacts, project
from include.runs.artifacts import FAILED, Result
from include.runs.project import Node, Project
from include.settings import REPOSITORY_ROOT
from warehouse_ui import views
from warehouse_ui.access import dag_id
from warehouse_ui.history import Run, last_runs

RUNBOOK = REPOSITORY_ROOT / "docs" / "runbook.md"


@dataclass(frozen=True)
class Cause:
    """One task that failed, or whose tests warned.

    Attributes:
        error: why, in a few lines; empty if its process died.
        has_hidden_values: whether part of that is hidden from this visitor.
        runbook: title of the section of docs/runbook.md to read.
        rejected: rows that failed the load.
        tests: each failing test with its rows.
        sql: of the model that failed.
        node: unique id of the dbt node that it built or tested.
    """

    task_id: str
    state: str
    error: str
    has_hidden_values: bool
    runbook: str
    rejected: views.Rejected | None = None
    tests: list[views.TestPage] = field(default_factory=list)
    sql: str = ""
    node: str = ""


@dataclass(frozen=True)
class Affected:
    """A table or an exposure that gets nothing newer.

    Attributes:
        is_published: whether readers see it, as of the last good release.
    """

    name: str
    kind: str
    schema: str
    table: str
    owner: str
    owner_email: str
    url: str
    is_published: bool


@dataclass(frozen=True)
class Incident:
    """What has failed in a run, and what that means.

    Attributes:
        runs: those affected: in a row, and none of them green; newest first.
        since: when the first of them started.
        cause_since: when the first of those started that failed for the same reason as this one.
        fixed_by: the green run after them, or empty.
        note: on the run, in Airflow.
        causes: the task asked for; by default all that failed.
        affected: what is built from what failed.
        tests: tests downstream.
        clearable: tasks to clear with downstream, the first as the runbook says.
    """

    run: Run
    runs: list[Run]
    since: datetime | None
    cause_since: datetime | None
    fixed_by: str
    note: str
    causes: list[Cause]
    affected: list[Affected]
    tests: int
    clearable: list[str]


def incident(session: Session, run_id: str, task_id: str, sees_all: bool) -> Incident | None:
    """Return what has failed in a run, or None if there is no such run, or nothing is failing.

    Args:
        session: a session on Airflow's metadata.
        run_id: the run; empty for the last one that ended, if it was not green.
        task_id: one of its tasks; empty for all that failed.
        sees_all: whether the visitor may see personal data.
    """
    runs = last_runs(session)
    ended = [run for run in runs if run.ended]
    if not run_id:
        if not ended or ended[0].is_green:
            return None
        run_id = ended[0].run_id
    run = next((one for one in runs if one.run_id == run_id), None)
    if run is None:
        return None
    streak = _streak(runs, run)
    newer = [one for one in ended if runs.index(one) < runs.index(streak[0])]
    same = list(itertools.takewhile(lambda one: views.cause(one) == views.cause(run), streak[streak.index(run) :]))
    tasks: Any = session.execute(
        select(TaskInstance.task_id, TaskInstance.state, TaskInstance.start_date).where(
            TaskInstance.dag_id == dag_id(), TaskInstance.run_id == run_id
        )
    ).all()
    wanted = {task_id} if task_id else set(run.failed_tasks)
    dbt = project.of_run(run_id)
    causes = [
        _cause(session, run_id, task, str(state or ""), start, dbt, sees_all)
        for task, state, start in sorted(tasks, key=lambda one: (str(one[2]), one[0]))
        if task in wanted
    ]
    below = _below(causes, dbt)
    note: Any = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id(), DagRun.run_id == run_id))
    return Incident(
        run,
        streak,
        streak[-1].started_at,
        (same or [run])[-1].started_at,
        newer[-1].run_id if newer else "",
        str((note and note.note) or ""),
        causes,
        _affected(below),
        sum(bool({test.node, *test.depends_on} & {one.unique_id for one in below}) for test in dbt.tests.values()),
        _clearable(causes, [task for task, *_ in tasks]),
    )


def _streak(runs: Sequence[Run], run: Run) -> list[Run]:
    """Return the runs in a row around this one of which none is green, newest first."""
    at = runs.index(run)
    after = itertools.takewhile(lambda one: not one.is_green, reversed(runs[:at]))
    before = itertools.takewhile(lambda one: not one.is_green, runs[at + 1 :])
    return [*reversed([one for one in after if one.ended]), run, *before]


def _cause(
    session: Session, run_id: str, task_id: str, state: str, start: datetime | None, dbt: Project, sees_all: bool
) -> Cause:
    kept = artifacts.error_of(run_id, task_id, start)
    load = next((one for one in artifacts.loads_of(run_id) if f"load.{one.source}" == task_id and one.error), None)
    results = [one for one in artifacts.results_of(run_id) if one.task_id == task_id and one.status in FAILED]
    tests = [
        page
        for one in results
        if one.unique_id.startswith(artifacts.TEST_KINDS)
        if (page := views.test_page(session, one.unique_id, run_id, sees_all))
    ]
    model = next((one for one in results if not one.unique_id.startswith(artifacts.TEST_KINDS)), None)
    text, runbook = _text(kept, load, results)
    hidden = bool(kept and kept.may_have_values and not sees_all)
    return Cause(
        task_id,
        state,
        artifacts.without_values(text.splitlines()[0]) if hidden and text else text,
        hidden,
        runbook,
        views.rejected_of(load, sees_all) if load and load.rejected else None,
        tests,
        artifacts.compiled_sql(run_id, model) if model else "",
        _node_of(results, dbt, task_id),
    )


def _text(kept: artifacts.Error | None, load: artifacts.Load | None, results: Sequence[Result]) -> tuple[str, str]:
    """Return why a task failed, and the title of its section in the runbook."""
    if kept:
        return kept.text, kept.runbook
    if load:
        return load.error, "The load rejected rows"
    if results:
        tested = all(one.unique_id.startswith(artifacts.TEST_KINDS) for one in results)
        words = [f"{one.unique_id.split('.')[2]}: {views.in_words(one.message)}" for one in results]
        warned = all(one.status == "warn" for one in results)
        return "\n".join(words), "A test warns" if warned else "A test failed" if tested else "A model failed"
    return "", "A task was killed"


def _node_of(results: Sequence[Result], dbt: Project, task_id: str) -> str:
    for one in results:
        if one.unique_id in dbt.nodes:
            return one.unique_id
        if (test := dbt.tests.get(one.unique_id)) and test.node:
            return test.node
    match = re.fullmatch(r"transform\.(.+)[._](?:run|seed|snapshot|test)", task_id)
    named = (one.unique_id for one in dbt.nodes.values() if match and match[1] in (one.name, one.table))
    return next(named, "")


def _below(causes: Sequence[Cause], dbt: Project) -> list[Node]:
    """Return what is built from what failed, and that itself."""
    start = {one.node for one in causes if one.node}
    for one in causes:
        if one.task_id.startswith("load."):
            schema = f"{one.task_id.removeprefix('load.')}_raw"
            start |= {node.unique_id for node in dbt.nodes.values() if node.kind == "source" and node.schema == schema}
    if not start:  # such as publish: nothing gets newer
        return [node for node in dbt.nodes.values() if node.kind != "source"] if causes else []
    own = [dbt.nodes[one] for one in sorted(start) if one in dbt.nodes]
    return [*own, *dbt.descendants(start)]


def _affected(below: Sequence[Node]) -> list[Affected]:
    state, _ = views.read_state()
    return [
        Affected(
            one.name,
            one.kind,
            one.schema,
            one.table,
            one.owner,
            one.owner_email,
            one.url if one.url.startswith(("https://", "http://")) else "",
            bool(state and state.table(one.schema, one.table)),
        )
        for one in sorted(below, key=lambda one: (one.kind != "exposure", views.schema_order(one.schema), one.name))
    ]


def _clearable(causes: Sequence[Cause], tasks: Sequence[str]) -> list[str]:
    """Return tasks of the run to clear with downstream: what the runbook says first, then what failed."""
    failed = [one.task_id for one in causes]
    loads = sorted(task for task in tasks if task == "load" or task.startswith("load."))
    from_load = not failed or any(one.endswith(("test", "freshness")) or one == "publish" for one in failed)
    models = [re.sub(r"([._])test$", r"\1run", one) for one in failed if one.endswith(("test",))]
    wanted = [*(loads if from_load else []), *failed, *models]
    return [one for one in dict.fromkeys(wanted) if one in tasks]


def section(title: str) -> str:
    """Return a section of the runbook, in Markdown; empty if there is none."""
    return _sections(RUNBOOK.stat().st_mtime_ns).get(title, "") if RUNBOOK.exists() else "See docs/runbook.md."


@lru_cache(maxsize=1)
def _sections(_modified_ns: int) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return {title.strip(): text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}
