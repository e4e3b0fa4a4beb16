"""Building blocks of the ELT DAGs: load >> source_freshness >> transform >> publish, and rollback.

`dags/jaffle_shop.py` puts them together; docs/adding-a-source.md shows a second DAG. A DAG is named after the warehouse
it fills. Airflow's plugin loader imports this file too, so heavy imports are left to the tasks.
"""

import functools
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
from airflow.sdk import DAG, Asset, Param, TaskGroup, task
from links import incident_page, show_page
from retries import RetryIfItHelps
from task_secrets import fetch
from turns import after_task, before_task, raise_at_time_limit

from include.runs import dbt_stop, manifest
from include.settings import (
    DBT_PROJECT,
    MARTS_SCHEMA,
    REPOSITORY_ROOT,
    dbt_profile,
    dbt_target,
    tasks_at_once,
    warehouse_name,
)

if TYPE_CHECKING:
    from include.errors import PipelineError
    from include.runs.alerts import Kind
    from include.runs.artifacts import Load

PROJECT_NAME = warehouse_name()
SERVED = bool(os.environ.get("SERVE_URL"))
# Where `_conclude_dbt` looks, whatever the project's target-path or DBT_TARGET_PATH is.
_RESULTS_IN_TARGET = ["--target-path", "target"]
_UNUSUAL, _REJECTED = "What was published is unusual", "The load rejected rows"  # sections of the runbook

try:
    import alerts
except ModuleNotFoundError as error:  # the file may be deleted
    if error.name != "alerts":
        raise
    alerts = None  # type: ignore[assignment]


def _alert(kind: "Kind", warehouse: str | None = None) -> Any:
    """Return a callback that sends alerts of a kind, or None if there are no alerts."""
    return alerts.AlertNotifier(kind, warehouse) if alerts else None


def _alerts(kind: "Kind", warehouse: str) -> list[Any]:
    """Return such a callback in a list, or an empty one."""
    return [_alert(kind, warehouse)] if alerts else []


def _send_alert(kind: "Kind", context: Any, **found: object) -> None:
    """Send an alert of a kind with what a task has found, if there are alerts."""
    if alert := _alert(kind):
        alert({**context, **found})


def _lineage_is_on() -> bool:
    """Return whether the settings of OpenLineage's client name a backend."""
    backends = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT")
    return any(name.startswith(backends) and value for name, value in os.environ.items())


def _send_lineage(run_id: str, error: str = "") -> None:
    """Send a run's lineage, if there is a backend; arguments as of `openlineage.send`."""
    if not _lineage_is_on():
        return
    module = "include.warehouse_catalog.openlineage"
    try:
        import_module(module).send(run_id, error)
    except ModuleNotFoundError as failure:
        if not module.startswith(failure.name or " "):  # else it has been deleted
            raise


def elt_dag(name: str, *, schedule: Any, description: str, pool: str = "duckdb_writer") -> DAG:
    """Return a DAG that fills a warehouse, with its schedule, params, retries, alerts and turn-taking.

    Args:
        name: the warehouse's name, also the DAG's id.
        schedule: as for `DAG`, or what `when_delivered` returns.
        description: one line.
        pool: the warehouse's pool in pools.json. Its slots are for dbt tasks that do not share a process: on a target
            with several writers they write in parallel, on another the next one starts while one writes. Load and
            publish take all of them.
    """
    return DAG(
        dag_id=name,
        schedule=schedule(name) if callable(schedule) else schedule,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=6),
        deadline=alerts.deadline(name, after=timedelta(hours=1)) if alerts else None,
        on_failure_callback=[
            *([functools.partial(_end_lineage, warehouse=name)] if _lineage_is_on() else []),
            *_alerts("failed", name),
        ]
        or None,
        on_success_callback=_alert("recovered", name),
        default_args={
            "owner": "data-platform",
            "pool": pool,
            "pool_slots": tasks_at_once(pool),
            "pre_execute": functools.partial(before_task, warehouse=name),
            "post_execute": after_task,
            "on_retry_callback": functools.partial(_keep_cost, warehouse=name),
            "retries": 3,
            "retry_policy": RetryIfItHelps(),
            "retry_delay": timedelta(seconds=10),
            "retry_exponential_backoff": 2,
            "max_retry_delay": timedelta(minutes=5),
            "execution_timeout": timedelta(hours=1),
            "on_failure_callback": [
                functools.partial(_keep_error, warehouse=name),
                *_alerts("failed", name),
            ],
        },
        params={
            "max_rejected_rows": Param(
                None,
                type=["null", "integer"],
                minimum=0,
                title="Rejected rows to tolerate",
                description_md="CSV rows that cannot be parsed are kept in the source's `rejected_rows`. More than "
                "this many fail the load. Empty: the source's own limit, which is 0 for the jaffle shop.",
            ),
            "full_refresh": Param(
                False,
                type="boolean",
                title="Full refresh",
                description_md="Reload incremental sources from scratch, and rebuild incremental models and seeds "
                "(`dbt --full-refresh`).",
            ),
        },
        tags=[name, "elt"],
        owner_links={"data-platform": "mailto:data-platform@example.com"},
        description=description,
        doc_md=(REPOSITORY_ROOT / "docs" / "runbook.md").read_text(),
    )


def _end_lineage(context: Any, warehouse: str) -> None:
    """Send the lineage of a run that has failed."""
    from include.warehouse import paths

    paths.use_warehouse(warehouse)
    _send_lineage(context["run_id"], error=str(context.get("reason") or "failed"))


def _keep_cost(context: Any, warehouse: str) -> None:
    """Keep what a try that failed cost, unless its process died."""
    from include.warehouse import paths

    if context.get("exception") is not None:
        paths.use_warehouse(warehouse)
        after_task(context)


def _keep_error(context: Any, warehouse: str) -> None:
    """Keep why a task failed, for its incident page, and what it cost."""
    from airflow.sdk.exceptions import AirflowTaskTimeout
    from airflow.sdk.log import mask_logs

    from include.errors import PipelineError, TimeLimitError, describe_failure
    from include.runs import artifacts

    error = context.get("exception")
    if error is None:  # the process died
        return
    _keep_cost(context, warehouse)
    error = TimeLimitError() if isinstance(error, AirflowTaskTimeout) else error
    text, runbook = describe_failure(error)
    masked = dict(mask_logs(None, "", {"text": text}))["text"]
    may_have_values = not isinstance(error, PipelineError)
    artifacts.keep_error(context["run_id"], context["ti"].task_id, str(masked), runbook, may_have_values)


def load(sources: Sequence[str]) -> Any:
    """Return a group with one task per source, named after it.

    Args:
        sources: names of sources in `include.dlt_pipelines`; none, if dbt reads all of its data by itself.
    """
    if not sources:
        from airflow.providers.standard.operators.empty import EmptyOperator

        return EmptyOperator(task_id="load", doc_md="dbt reads its data by itself.")
    with TaskGroup("load", tooltip="Load each source in one transaction") as group:
        for source in sources:
            _load.override(task_id=source)(source)
    return group


@task
def _load(source: str, params: dict[str, Any], run_id: str) -> dict[str, object]:
    """Load all tables of a source in one transaction, or none of them."""
    from airflow.sdk import get_current_context
    from airflow.sdk.log import mask_secret

    from include.dlt_pipelines.load import find_source
    from include.dlt_pipelines.load import load as load_source
    from include.dlt_pipelines.source_errors import secrets_of

    try:
        found = find_source(source)
        for secret in sorted(secrets_of(source)):
            mask_secret(secret)
        loaded = load_source(found, run_id, params["max_rejected_rows"], params["full_refresh"])
    except Exception:
        _show_incident(get_current_context())
        raise
    if loaded.rows_rejected:
        _warn_of_rejected(loaded, get_current_context())
    # Without the rejected rows, which may contain personal data: anyone can read what a task returns.
    return {"load_id": loaded.load_id, "rows_loaded": loaded.rows_loaded, "rows_rejected": loaded.rows_rejected}


def _show_incident(context: Any) -> None:
    show_page(incident_page(context["run_id"], context["ti"].task_id), context["dag"].dag_id)


def _warn_of_rejected(loaded: "Load", context: Any) -> None:
    """Alert that rows are missing from what will be published: the run tolerates it, its readers may not."""
    tables = {name: one for name, one in loaded.tables.items() if one.rows_rejected}
    texts = [
        f"{one.rows_rejected:,} of {one.rows_rejected + one.rows_loaded:,} rows rejected, tolerated by this run"
        for one in tables.values()
    ]
    _send_alert("warned", context, test_names=list(tables), test_results=texts, runbook=_REJECTED)
    show_page("quality#rejected", context["dag"].dag_id)


def source_freshness(sources: Sequence[str]) -> Any:
    """Return a task that checks that the sources' tables are recent enough for their freshness limits.

    Args:
        sources: their names; those without such a limit are left out. Sources that dbt reads by itself are checked too.
    """
    from airflow.providers.standard.operators.empty import EmptyOperator
    from cosmos.constants import InvocationMode
    from cosmos.dbt.graph import is_freshness_effective
    from cosmos.operators.local import DbtSourceLocalOperator
    from task_processes import dbt_queue

    limited = sorted(
        {
            one["source_name"]
            for one in _tasks()["sources"].values()
            if (one["source_name"] in sources or one["outside"]) and is_freshness_effective(one["freshness"])
        }
    )
    if not limited:
        return EmptyOperator(task_id="source_freshness", doc_md="None of the sources has a freshness limit.")
    return DbtSourceLocalOperator(
        task_id="source_freshness",
        queue=dbt_queue(),
        project_dir=str(DBT_PROJECT),
        profile_config=_profile(),
        select=[f"source:{source}" for source in limited],
        dbt_cmd_flags=_RESULTS_IN_TARGET,
        install_deps=False,
        invocation_mode=InvocationMode.DBT_RUNNER,
        callback=_conclude_dbt,
        dbt_runner_callbacks=[dbt_stop.note],
        on_warning_callback=_alert("warned"),
        emit_datasets=False,
        doc_md="Check that the sources' tables are recent enough for their freshness limits.",
    )


def transform(select: Sequence[str] = (), exclude: Sequence[str] = ()) -> Any:
    """Return a group with one task per model, seed and dbt snapshot, and one for the tests of each.

    Cosmos renders what `BuildGraph.tasks` makes of the project: all that publish demands, and nothing else.

    Args:
        select: the part of the dbt project this DAG builds, such as `path:models/marketing`; default all of it.
        exclude: the parts that other DAGs build.
    """
    from cosmos import DbtTaskGroup, ExecutionConfig, ProjectConfig, RenderConfig
    from cosmos.constants import ExecutionMode, InvocationMode, LoadMode, TestBehavior
    from cosmos.operators.local import DbtTestLocalOperator
    from patches.cosmos_one_task import only_this_task
    from task_processes import RESIDENT, dbt_queue

    nodes = _tasks()["nodes"]
    with only_this_task():
        group = DbtTaskGroup(
            group_id="transform",
            project_config=ProjectConfig(
                dbt_project_path=DBT_PROJECT,
                models_relative_path=".",  # Cosmos insists on a folder, which it does not read
                manifest_path=manifest.current().tasks,
                install_dbt_deps=False,
            ),
            profile_config=_profile(),
            execution_config=ExecutionConfig(
                execution_mode=ExecutionMode.LOCAL, invocation_mode=InvocationMode.DBT_RUNNER
            ),
            render_config=RenderConfig(
                load_method=LoadMode.DBT_MANIFEST,
                test_behavior=TestBehavior.AFTER_EACH,
                should_detach_multiple_parents_tests=True,
                select=list(select),
                exclude=list(exclude),
                emit_datasets=False,
            ),
            operator_args={
                "queue": dbt_queue(),
                "callback": _conclude_dbt,
                "dbt_runner_callbacks": [dbt_stop.note],
                "on_warning_callback": _alert("warned"),
                "full_refresh": "{{ params.full_refresh }}",
                "should_store_compiled_sql": False,
                "dbt_cmd_flags": _RESULTS_IN_TARGET,
            },
        )
    for dbt_task in group.iter_tasks():
        dbt_task.pool_slots = 1
        if dbt_task.queue == RESIDENT:  # it waits for its process, not for a slot: several are handed out at once
            dbt_task.pool = "default_pool"
        context = getattr(dbt_task, "extra_context", {})  # an ephemeral model is an empty task
        if node := nodes.get(context.get("dbt_node_config", {}).get("unique_id")):
            dbt_task.doc_md = node["description"]
            dbt_task.select = node["select"]
            if isinstance(dbt_task, DbtTestLocalOperator):
                dbt_task.exclude = node.get("but")
                dbt_task.indirect_selection = "eager"  # the tests of the node, whatever the project's flags are
    chosen = group.dbt_graph.filtered_nodes.keys() & nodes.keys()
    group.selected = sorted(id_ for one in chosen for id_ in nodes[one]["counts"]) if select or exclude else None
    return group


def publish(models: Any) -> Any:
    """Return a task that publishes what was built, if all of it is current and has passed.

    It updates an asset `WAREHOUSE.marts.NAME` for each mart, on which other DAGs can be scheduled.

    Args:
        models: what `transform` returned.
    """
    name = models.dag.dag_id
    marts = [
        Asset(f"{name}.{node['schema']}.{node['alias']}")
        for _, node in sorted(_tasks()["nodes"].items())
        if node["resource_type"] == "model" and node["schema"] == MARTS_SCHEMA
        if models.selected is None or node["counts"][0] in models.selected
    ]
    published = _publish.override(task_id="publish", outlets=marts)(models.selected)
    if SERVED:
        published >> _serve.override(task_id="serve", pool="default_pool", pool_slots=1, pre_execute=fetch)(name)
    return published


@task
def _publish(selected: list[str] | None, run_id: str) -> dict[str, object]:
    """Publish a copy of the working database to readers, in one atomic step."""
    from airflow.sdk import get_current_context
    from turns import check_complete

    from include import provenance
    from include.change import gate, releases
    from include.runs import artifacts
    from include.runs.publish import publish as publish_release
    from include.warehouse.hold import ReleaseHeldError

    check_complete(get_current_context())
    dag_run = get_current_context()["dag_run"]
    with provenance.started_by(dag_run.triggering_user_name or f"Airflow ({dag_run.run_type})"):
        try:
            release = publish_release(run_id, manifest.current().manifest, selected)
        except gate.WaitsForApprovalError as waits:
            # Not a task that waits: the next run would wait behind it.
            _skip_publish(waits, "waits", why=str(waits))
        except ReleaseHeldError as held:
            _skip_publish(held, "warned", test_names=["publish"], test_results=[str(held)])
    differs = releases.keep_difference(release)
    _send_lineage(run_id)
    if unusual := artifacts.unusual_in(run_id):
        texts = [f"{text}; {differs[table]}" if table in differs else text for table, text in unusual.items()]
        _send_alert("warned", get_current_context(), test_names=list(unusual), test_results=texts, runbook=_UNUSUAL)
    show_page("releases", get_current_context()["dag"].dag_id)
    return {"release": release.id, "bytes": release.size_bytes}


def _skip_publish(reason: "PipelineError", kind: "Kind", **found: object) -> NoReturn:
    """End the task as skipped, with an alert: a person has to decide."""
    from airflow.sdk import get_current_context
    from airflow.sdk.exceptions import AirflowSkipException

    context = get_current_context()
    _send_alert(kind, context, **found, runbook=reason.runbook)
    show_page("releases", context["dag"].dag_id)
    raise AirflowSkipException(str(reason)) from None


def _tasks() -> dict[str, Any]:
    file = manifest.current().tasks
    return _read_tasks(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read_tasks(file: Path, _modified_ns: int) -> dict[str, Any]:
    return dict(orjson.loads(file.read_bytes()))


def _profile() -> Any:
    from cosmos import ProfileConfig

    return ProfileConfig(
        profile_name=dbt_profile(),
        target_name=dbt_target(),
        profiles_yml_filepath=DBT_PROJECT / "profiles.yml",
    )


def _conclude_dbt(project_dir: str, context: dict[str, Any]) -> None:
    """Keep dbt's results, and raise dbt's own error if it failed."""
    from include import dbt_session
    from include.runs import dbt_results
    from include.warehouse.targets import target

    task_id, run_id = context["ti"].task_id, context["run_id"]
    try:
        dbt_results.conclude(Path(project_dir) / "target", run_id, task_id)
        dbt_stop.check()
    except Exception:
        _show_incident(context)
        raise
    finally:
        if not dbt_session.is_active():
            target().end_turn()
        raise_at_time_limit()


_ROLLBACK_DOC = """
Switches readers to a kept release, at once and atomically; the working database is not touched. **It holds**: runs of
`{name}` build and test, and skip `publish`, until you trigger this DAG with *Release the hold*, or roll back to the
newest release.

`list_releases` logs the kept releases; trigger with *release* empty to list them only. Safe to clear: rolling back
to the same release twice changes nothing. With a *decision* it approves or refuses the release that waits
(`PUBLISH_GATE`).
"""


def rollback_dag(name: str) -> DAG:
    """Return the DAG that switches readers to another release of a warehouse.

    Args:
        name: the warehouse's name.
    """
    with DAG(
        dag_id=f"{name}_rollback",
        schedule=None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        default_args={
            "owner": "data-platform",
            "retries": 0,
            "execution_timeout": timedelta(minutes=10),
            "pre_execute": fetch,
        },
        params={
            "release": Param(
                "",
                type="string",
                title="Release",
                description_md="Id of a kept release, or of the run that published it. Empty: only list them.",
            ),
            "decision": Param(
                "",
                type="string",
                enum=["", "approve", "refuse"],
                title="Decision",
                description_md="On the release that waits for approval, if it is this one.",
            ),
            "note": Param("", type="string", title="Note", description_md="Why; for a decision."),
            "release_hold": Param(
                False,
                type="boolean",
                title="Release the hold",
                description_md="Let runs publish again after a rollback. *Release* stays empty.",
            ),
        },
        tags=[name, "on-call"],
        description="Switch readers to a kept release",
        doc_md=_ROLLBACK_DOC.format(name=name),
    ) as dag:
        rollback = _roll_back.override(task_id="rollback")(name)
        _list_releases.override(task_id="list_releases")(name) >> rollback
        if SERVED:
            rollback >> _serve.override(task_id="serve")(name)
    return dag


@task
def _serve(name: str) -> dict[str, int]:
    """Copy what is published to the database server that `SERVE_URL` names, all tables in one step."""
    from include.serving import serve
    from include.warehouse import paths

    paths.use_warehouse(name)
    return serve()


@task
def _list_releases(name: str) -> list[str]:
    """Log the kept releases, newest first."""
    from include.warehouse import paths
    from include.warehouse.targets import target

    paths.use_warehouse(name)
    releases = target().list_releases()
    for release in releases:
        mark = "  <- published" if release.published else ""
        print(f"{release.id}  {release.created_at:%Y-%m-%d %H:%M:%S} UTC  {release.size_bytes} bytes{mark}")
    return [release.id for release in releases]


@task
def _roll_back(name: str, params: dict[str, Any]) -> str:
    """Show readers the chosen release and hold it; or release the hold; or decide on the release that waits."""
    from airflow.sdk import get_current_context
    from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

    from include.change import gate
    from include.warehouse import hold, paths
    from include.warehouse.errors import WarehouseError

    chosen = params["release"] or params.get("snapshot", "")
    if not params["release"] and chosen:
        print("The parameter `snapshot` is now `release`; the next version ignores the old name.")
    if not chosen and not params["release_hold"]:
        raise AirflowSkipException("No release chosen; nothing changed.")
    if chosen and params["release_hold"]:
        raise AirflowFailException("Choose a release to roll back to, or release the hold; not both.")
    paths.use_warehouse(name)
    decision, dag_run = params.get("decision"), get_current_context()["dag_run"]
    by = dag_run.triggering_user_name or f"Airflow ({dag_run.run_type})"
    try:
        if not chosen:
            found = hold.end()
            return f"Released: {found.text}" if found else "No rollback holds."
        if not decision:
            return hold.roll_back(chosen, by).id
        release = gate.decide(chosen, approved=decision == "approve", note=params.get("note", ""), by=by)
    except (WarehouseError, ValueError) as error:
        raise AirflowFailException(str(error)) from error
    if decision == "refuse":
        raise AirflowSkipException(f"Refused {release.id}; readers see no change.")
    return release.id
