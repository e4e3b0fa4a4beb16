"""Build and test in a scratch database what differs from the release that it is a copy of: a process of its own.

dbt keeps the database open for as long as its process lives. The environment says where the scratch is, as for any dbt
command: `WAREHOUSE_DIR` and `DBT_TARGET`.

python -m include.change.build RESULT.json [--full] [--no-load]
"""

import contextlib
import gc
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
from dbt.cli.main import dbtRunner

from include import dbt_session
from include.change.report import CODES, Build
from include.errors import PipelineError
from include.runs.artifacts import without_values
from include.runs.build_graph import BuildGraph
from include.settings import DBT_PROJECT as PROJECT
from include.settings import is_audit
from include.warehouse import builds, paths
from include.warehouse.builds import Build as Record
from include.warehouse.errors import WarehouseError, first_line
from include.warehouse.targets import target

# Their messages name columns and tables; any other may quote values.
_LONGEST = 400
_WITHOUT_VALUES = ("Binder Error", "Catalog Error", "Parser Error", "Compilation Error", "Parsing Error")


@dataclass
class _Plan:
    """Unique ids of nodes to build.

    Attributes:
        changed: their code differs, or they are new.
        also_built: they read those.
        removed: relations that are gone.
        left_out: relations of views, which the copy left out.
        missing: what the copy does not have, and nothing else builds.
        notes: what else to know.
    """

    changed: list[str] = field(default_factory=list)
    also_built: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build(full: bool, with_loads: bool = True) -> Build:
    """Parse the project, build what differs, then run the tests that depend on it.

    Args:
        full: build everything, from the loaded tables on.
        with_loads: load the sources whose contracts differ.

    Returns:
        What was done; failures are part of it.
    """
    target_dir = paths.warehouse_dir() / "target"
    parsed, error = _parse(target_dir)
    if parsed is None:
        return Build(failures=(f"the project cannot be parsed: {error}",))
    graph = BuildGraph(json.loads((target_dir / "manifest.json").read_text()))
    loads = _load_changed_sources() if with_loads else _Loads()
    with target().open_working() as connection:
        _translate(connection, graph)
        plan = _prepare(connection, graph, full)
    dbt = _Dbt(parsed, target_dir)
    built = [*plan.changed, *plan.also_built, *plan.missing]
    if built:
        dbt.invoke("build", built, "--exclude-resource-type", "test", "--exclude-resource-type", "unit_test")
    dbt_session.close_database()
    with target().open_working() as connection:
        known = builds.recorded(connection)
    tests = [node.id for node in graph.nodes if _is_test(node.id) and not _is_current(node, known)]
    if tests:
        dbt.invoke("test", tests, "--indirect-selection", "empty")
    dbt_session.close_database()
    return Build(
        changed=(*loads.tables, *sorted(_name(one) for one in plan.changed)),
        also_built=tuple(sorted(_name(one) for one in plan.also_built)),
        removed=tuple(plan.removed),
        tests=dbt.tests,
        tests_passed=dbt.tests_passed,
        failures=(*loads.failures, *dbt.failures),
        notes=(*loads.notes, *plan.notes, *dbt.warnings),
        left_out=tuple(plan.left_out),
    )


@dataclass
class _Loads:
    """The tables of sources that were loaded, as their contracts differ, and what there is to say of it."""

    tables: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _load_changed_sources() -> _Loads:
    """Load the sources whose contracts differ from those that the base was loaded with."""
    from include.dlt_pipelines.file_source import FileSource
    from include.dlt_pipelines.load import find_source, load

    result = _Loads()
    with target().open_working() as connection:
        known = {one.node: one.code for one in builds.recorded(connection, "node = relation").values() if one.code}
    for name in sorted({relation.split(".")[0].removesuffix("_raw") for relation in known}):
        try:
            source = find_source(name)
        except (ImportError, ValueError):  # removed, or loaded by another project
            continue
        if not isinstance(source, FileSource):
            continue
        codes = {f"{name}_raw.{table.name}": table.code for table in source.tables}
        changed = [relation for relation, code in codes.items() if known.get(relation) != code]
        if changed:
            try:
                load(source, "preview")
            except PipelineError as error:
                result.failures.append(f"load of {name}: {first_line(error)}")
            else:
                result.tables += changed
                result.notes.append(
                    f"{name} was loaded, as the contract of {', '.join(changed)} differs: from the files now in "
                    f"{source.data_dir}, which may be newer than the release"
                )
    return result


def _parse(target_dir: Path) -> tuple[Any, str]:
    """Return dbt's manifest, which is in `target_dir` as well; None and why if the project has an error."""
    outcome = dbtRunner().invoke(["--quiet", "parse", *_options(target_dir)])
    if not outcome.success:
        return None, _describe(str(outcome.exception))
    return outcome.result, ""


def _translate(connection: duckdb.DuckDBPyConnection, graph: BuildGraph) -> None:
    """Record what was built on another engine from the code as it is now as built from the same code on this one."""
    with contextlib.suppress(FileNotFoundError):
        there = json.loads((paths.warehouse_dir() / CODES).read_text())
        connection.executemany(
            "update warehouse.builds set code = ? where node = ? and code = ?",
            [(node.code, node.id, there.get(node.id)) for node in graph.nodes],
        )


def _prepare(connection: duckdb.DuckDBPyConnection, graph: BuildGraph, full: bool) -> _Plan:
    """Find out what to build, and drop what is gone and what must be built from nothing."""
    plan = _Plan()
    known = builds.recorded(connection)
    there = {".".join(one) for one in target().relations(connection)}
    nodes = {node.id: node for node in graph.nodes if not _is_test(node.id)}
    missing: set[str] = set()
    for id_, node in nodes.items():
        mine = known.get(id_)
        is_missing = mine is not None and graph.relation(id_) in graph.must_exist - there
        if is_missing and graph.manifest["nodes"][id_]["config"]["materialized"] == "view":
            plan.left_out.append(graph.relation(id_))
        if full or mine is None or mine.code != node.code:
            plan.changed.append(id_)
        elif is_missing:
            missing.add(id_)
    reached = set(plan.changed)
    # A source that was loaded again counts as well.
    stale = {id_ for id_, node in nodes.items() if not _is_current(node, known)}
    size = -1
    while size != len(reached):
        size = len(reached)
        reached |= {id_ for id_, node in nodes.items() if id_ in stale or reached & set(node.parents)}
    plan.also_built = [id_ for id_ in nodes if id_ in reached and id_ not in plan.changed]
    plan.missing = [id_ for id_ in nodes if id_ in missing - reached]
    dropped = builds.drop_unknown(connection, set(graph.relations.values()))
    plan.removed = [one for one in dropped if not is_audit(one.split(".")[0])]
    for id_ in plan.changed:
        config = graph.manifest["nodes"][id_]["config"]
        mine = known.get(id_)
        if not mine or not mine.stateful or graph.relation(id_) not in there:
            continue
        if graph.manifest["nodes"][id_]["resource_type"] == "snapshot":
            plan.notes.append(f"{_name(id_)} is a dbt snapshot: its history was built with the code before")
        elif config.get("full_refresh") is False:
            plan.notes.append(
                f"{_name(id_)} has full_refresh: false, so its earlier rows were built with the code before"
            )
        else:
            target().drop(connection, *graph.relation(id_).split(".", 1))
            plan.notes.append(
                f"{_name(id_)} is incremental, and was rebuilt in full: what only earlier loads had is gone"
            )
    return plan


def _is_current(node: builds.Node, known: Mapping[str, Record]) -> bool:
    mine = known.get(node.id)
    if mine is None or mine.code != node.code:
        return False
    return all(parent in known and mine.parents.get(parent) == known[parent].build_id for parent in node.parents)


def _is_test(id_: str) -> bool:
    return id_.startswith(("test.", "unit_test."))


def _name(id_: str) -> str:
    return ".".join(id_.split(".")[2:]) if not id_.startswith("unit_test.") else id_.split(".")[-1]


class _Dbt:
    """dbt commands on a scratch, and what came of them."""

    def __init__(self, manifest: Any, target_dir: Path) -> None:
        self._manifest, self._target_dir = manifest, target_dir
        self.tests = self.tests_passed = 0
        self.failures: list[str] = []
        self.warnings: list[str] = []

    def invoke(self, command: str, ids: Iterable[str], *options: str) -> None:
        names = [self._selector(id_) for id_ in ids]
        outcome = dbtRunner().invoke(["--quiet", command, *_options(self._target_dir), *options, "--select", *names])
        for result in getattr(outcome.result, "results", None) or []:
            self._count(result)
        if outcome.exception is not None:
            self.failures.append(f"dbt {command}: {_describe(str(outcome.exception))}")

    def _selector(self, id_: str) -> str:
        node = self._manifest.nodes.get(id_) or self._manifest.unit_tests[id_]
        return f"fqn:{'.'.join(node.fqn)}"

    def _count(self, result: Any) -> None:
        status, name, is_test = str(result.status), result.node.name, _is_test(result.node.unique_id)
        if is_test and status != "skipped":
            self.tests += 1
            self.tests_passed += status in ("pass", "warn")
        rows = f"{result.failures:,} failing row{'' if result.failures == 1 else 's'}" if result.failures else ""
        if status == "warn":
            self.warnings.append(f"{name} warns: {rows}")
        elif status in ("fail", "error", "runtime error"):
            is_unit_test = result.node.unique_id.startswith("unit_test.")
            failed = "does not return what it expects" if is_unit_test and status == "fail" else rows
            self.failures.append(f"{name}: {failed or _describe(result.message or status)}")
        elif status == "skipped" and not is_test:
            self.failures.append(f"{name}: not built, as something that it reads failed")


def _options(target_dir: Path) -> list[str]:
    folders = ["--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT), "--target-path", str(target_dir)]
    return [*folders, "--log-level-file", "none", "--log-path", str(target_dir)]


def _describe(message: str) -> str:
    """Return a dbt error in one line: without the macros that led to it, the model's name, and values of rows."""
    lines = [one.strip() for one in message.splitlines() if not one.strip().startswith((">", "LINE ", "^"))]
    line = " ".join(" ".join(lines).split())
    if not any(one in line for one in _WITHOUT_VALUES):
        line = without_values(line)
    return re.sub(r"^\w+ Error in \w+ \S+ \(.*?\)\s*", "", line)[:_LONGEST]


def main(arguments: Sequence[str]) -> int:
    """Write the result to the file named first; `--full` builds everything, `--no-load` loads no source."""
    gc.disable()  # a process of seconds
    dbt_session.start()  # one command after another, without parsing the project again
    result = build("--full" in arguments[1:], "--no-load" not in arguments[1:])
    Path(arguments[0]).write_text(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (WarehouseError, duckdb.Error) as error:
        sys.exit(f"error: {first_line(error)}")
