"""Send a run's lineage to an OpenLineage backend: loads, models with the columns that they are made of, tests, publish.

All events of a run come from here, once it has published or failed, made of what it left behind. What readers open is a
dataset of its own, which `publish` makes of the working tables: so lineage goes from the files to what is read.

The client's own settings choose the backend: `OPENLINEAGE_URL`, `OPENLINEAGE_API_KEY`, or any other of its transports.
"""

import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    JobFacet,
    RunFacet,
    column_lineage_dataset,
    data_quality_assertions_dataset,
    documentation_dataset,
    error_message_run,
    job_type_job,
    output_statistics_output_dataset,
    parent_run,
    schema_dataset,
)

from include.dlt_pipelines.file_source import FileSource
from include.dlt_pipelines.load import find_source
from include.runs import artifacts, project
from include.settings import warehouse_name
from include.warehouse.targets import target
from include.warehouse_catalog import lineage, published

logger = logging.getLogger(__name__)

_PRODUCER = "urn:jaffle-shop-elt"
_DISABLED = "OPENLINEAGE_DISABLED"
_PASSED = ("success", "pass", "warn", "no-op")


def send(run_id: str, error: str = "") -> int:
    """Send a run's events; return how many. A backend that does not take one is logged, and gets no more of them.

    Args:
        run_id: a run of this process's warehouse, that has published or failed.
        error: why it failed; of no secret and no values.
    """
    sent = 0
    try:
        client = _client()
        for event in events(run_id, error):
            client.emit(event)
            sent += 1
        client.close(10)
    except Exception as problem:  # noqa: BLE001, any error of any transport; it may name a secret
        status = getattr(getattr(problem, "response", None), "status_code", "")
        reason = f"{type(problem).__name__} {status}".strip()
        logger.warning("OpenLineage: %d events sent, then %s. Nothing else depends on them.", sent, reason)
    return sent


def _client() -> OpenLineageClient:
    """Return a client, which airflow.env turns off for others: Cosmos would send events from each task."""
    disabled = os.environ.pop(_DISABLED, None)
    try:
        return OpenLineageClient()
    finally:
        if disabled is not None:
            os.environ[_DISABLED] = disabled


def events(run_id: str, error: str = "") -> Iterator[RunEvent]:
    """Return a run's events in order; arguments as for `send`."""
    found = _Events(run_id)
    yield found.event(found.whole, RunState.START)
    for step in found.steps():
        yield found.event(step, RunState.START)
        yield found.event(step, RunState.FAIL if step.failed else RunState.COMPLETE)
    if error:
        found.whole.failed = error
    elif artifacts.was_published(run_id):
        step = found.publish()
        yield found.event(step, RunState.START)
        yield found.event(step, RunState.COMPLETE)
    found.whole.ended = datetime.now(UTC)
    yield found.event(found.whole, RunState.FAIL if error else RunState.COMPLETE)


@dataclass
class _Step:
    """A task, or the whole run if it has no task."""

    task_id: str
    kind: str
    ended: datetime
    seconds: float = 0.0
    failed: str = ""
    inputs: list[InputDataset] = field(default_factory=list)
    outputs: list[OutputDataset] = field(default_factory=list)

    @property
    def started(self) -> datetime:
        return self.ended - timedelta(seconds=self.seconds)


class _Events:
    """Makes the events of one run."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._loads = artifacts.loads_of(run_id)
        self._results = artifacts.results_of(run_id)
        self._project = project.of_run(run_id)
        first = min((_time(one.ended_at) - timedelta(seconds=one.seconds) for one in self._loads), default=None)
        self.whole = _Step("", "DAG", first or datetime.now(UTC))

    @cached_property
    def _tables(self) -> dict[tuple[str, str], published.Table]:
        state = published.current()
        return {(one.schema, one.name): one for one in state.tables} if state else {}

    def steps(self) -> Iterator[_Step]:
        """Return loads, then dbt's tasks in the order in which they ended."""
        for load in self._loads:
            yield self._load(load)
        by_task: dict[str, list[artifacts.Result]] = {}
        for one in sorted(self._results, key=lambda result: result.ended_at):
            if one.ended_at:
                by_task.setdefault(one.task_id, []).append(one)
        for task_id, results in by_task.items():
            step = self._dbt(task_id, results)
            if step.inputs or step.outputs:
                yield step

    def publish(self) -> _Step:
        """Return what readers open, made of the working tables."""
        step = _Step("publish", "PUBLISH", datetime.now(UTC))
        for schema, name in sorted(self._tables):
            step.inputs.append(self._input(schema, name))
            columns = [one.name for one in self._tables[schema, name].columns]
            made_of = {column: [(schema, name, column)] for column in columns}
            step.outputs.append(self._output(schema, name, made_of, is_published=True))
        return step

    def _load(self, load: artifacts.Load) -> _Step:
        failed = artifacts.without_values(load.error.partition("\n")[0])
        step = _Step(f"load.{load.source}", "LOAD", _time(load.ended_at), load.seconds, failed)
        schema = f"{load.source}_raw"
        for table, one in load.tables.items():
            step.inputs += _files(load.source, one)
            if not load.error:
                step.outputs.append(self._output(schema, table, {}, rows=one.rows_loaded, size=one.bytes))
        return step

    def _dbt(self, task_id: str, results: list[artifacts.Result]) -> _Step:
        seconds = sum(one.seconds for one in results)
        kind = "TEST" if all(one.unique_id.startswith(artifacts.TEST_KINDS) for one in results) else "MODEL"
        step = _Step(task_id, kind, _time(results[-1].ended_at), seconds)
        bad = [one.unique_id.split(".")[2] for one in results if one.status not in _PASSED]
        step.failed = f"failed: {', '.join(bad)}" if bad else ""
        checks: dict[str, list[data_quality_assertions_dataset.Assertion]] = {}
        for one in results:
            if test := self._project.tests.get(one.unique_id):
                checks.setdefault(test.node, []).append(_assertion(test, one))
            elif node := self._project.nodes.get(one.unique_id):
                self._model(step, node, one)
        for node_id, assertions in checks.items():
            if (node := self._project.nodes.get(node_id)) and node.table:
                facet = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(assertions)
                step.inputs.append(self._input(node.schema, node.table))
                step.inputs[-1].inputFacets = {"dataQualityAssertions": facet}
        return step

    def _model(self, step: _Step, node: project.Node, result: artifacts.Result) -> None:
        for parent in node.depends_on:
            if (above := self._project.nodes.get(parent)) and above.table:
                step.inputs.append(self._input(above.schema, above.table))
        if result.status not in _PASSED or not node.table:
            return
        made_of: dict[str, list[lineage.Source]] = {}
        if (sql := artifacts.compiled_sql(self._run_id, result)) and (state := published.current()):
            made_of = {name: list(sources) for name, sources in lineage.columns(sql, state).items()}
        step.outputs.append(self._output(node.schema, node.table, made_of))

    def _input(self, schema: str, table: str) -> InputDataset:
        return InputDataset(_namespace(), _name(schema, table), facets=self._facets(schema, table))

    def _output(
        self,
        schema: str,
        table: str,
        made_of: dict[str, list[lineage.Source]],
        *,
        is_published: bool = False,
        rows: int | None = None,
        size: int | None = None,
    ) -> OutputDataset:
        facets = self._facets(schema, table)
        fields = {}
        for column, sources in made_of.items():
            inputs = [column_lineage_dataset.InputField(_namespace(), _name(*one[:2]), one[2]) for one in sources]
            fields[column] = column_lineage_dataset.Fields(inputs)
        if fields:
            facets["columnLineage"] = column_lineage_dataset.ColumnLineageDatasetFacet(fields)
        if rows is None and (known := self._tables.get((schema, table))):
            rows = known.rows
        statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows, size=size)
        namespace = _namespace(is_published=is_published)
        return OutputDataset(
            namespace, _name(schema, table), facets=facets, outputFacets={"outputStatistics": statistics}
        )

    def _facets(self, schema: str, table: str) -> dict[str, DatasetFacet]:
        facets: dict[str, DatasetFacet] = {}
        node = self._project.node_of(schema, table)
        if known := self._tables.get((schema, table)):
            facets["schema"] = schema_dataset.SchemaDatasetFacet(
                [
                    schema_dataset.SchemaDatasetFacetFields(
                        one.name, one.type, _text(node and node.columns.get(one.name.lower()))
                    )
                    for one in known.columns
                ]
            )
        if text := _text(node):
            facets["documentation"] = documentation_dataset.DocumentationDatasetFacet(text)
        return facets

    def event(self, step: _Step, state: RunState) -> RunEvent:
        """Return an event of a task or of the run."""
        dag, namespace = warehouse_name(), os.environ.get("OPENLINEAGE_NAMESPACE") or "airflow"
        own = f"{dag}/{self._run_id}"
        facets: dict[str, RunFacet] = {}
        if step.task_id:
            facets["parent"] = parent_run.ParentRunFacet(parent_run.Run(_id(own)), parent_run.Job(namespace, dag))
            own = f"{own}/{step.task_id}/{step.ended}"
        if step.failed and state is RunState.FAIL:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(step.failed, "SQL")
        kind: dict[str, JobFacet] = {"jobType": job_type_job.JobTypeJobFacet("BATCH", "ELT", step.kind)}
        job = Job(namespace, f"{dag}.{step.task_id}" if step.task_id else dag, kind)
        at = step.started if state is RunState.START else step.ended
        is_end = state is not RunState.START
        return RunEvent(
            eventTime=at.isoformat(),
            run=Run(_id(own), facets),
            job=job,
            eventType=state,
            inputs=step.inputs if is_end else [],
            outputs=step.outputs if is_end else [],
            producer=_PRODUCER,
        )


def _files(source: str, table: artifacts.TableLoad) -> list[InputDataset]:
    """Return the file that a table was loaded from, or the folder of several; nothing if it is not of files."""
    found = find_source(source)
    if not isinstance(found, FileSource):
        return []
    place = f"{found.location}/{Path(table.file).name}" if table.files == 1 else found.location
    scheme, is_url, path = place.partition("://")
    if not is_url:
        return [InputDataset("file", place)]
    bucket, _, name = path.partition("/")
    return [InputDataset(f"{scheme}://{bucket}", name)]


def _assertion(test: project.Test, result: artifacts.Result) -> data_quality_assertions_dataset.Assertion:
    return data_quality_assertions_dataset.Assertion(
        assertion=test.kind or test.name,
        success=result.status == "pass",
        column=test.column or None,
        severity=test.severity,
        name=test.name,
    )


def _namespace(*, is_published: bool = False) -> str:
    return target().namespace(is_published=is_published)


def _name(schema: str, table: str) -> str:
    return f"{warehouse_name()}.{schema}.{table}"


def _text(documented: project.Node | project.Column | None) -> str | None:
    return (documented.description or None) if documented else None


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
