"""Records dbt's builds and tests: the part of the build graph that runs inside dbt.

dbt finds it through its plugin interface (`dbt_build_graph.py`), and the macros of `build_graph.sql`, which write the
rows in the transaction of the build, as `graph.builds`.

What a node read is what its parents were when the command started, or as the command itself has built them since: if
another command rebuilds one in between, the record names a build that is not the latest, and publish refuses it.
"""

import json
import os
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import md5
from pathlib import Path
from typing import Any

from dbt.adapters.factory import FACTORY
from dbt.artifacts.resources.v1.config import Hook, NodeConfig
from dbt.contracts.graph.manifest import Manifest
from dbt.flags import get_flags
from dbt_common.exceptions import DbtRuntimeError
from dbt_common.invocation import get_invocation_id

from include.patches import dbt_values
from include.runs.build_graph import IN_DATABASE, RECORD_BUILD, RECORDER, START_BUILD, BuildGraph
from include.settings import dbt_target, warehouse_timezone
from include.sql import escaped_literal, identifier, literal
from include.warehouse import guard
from include.warehouse.errors import WarehouseError
from include.warehouse.targets import TARGETS, target
from include.warehouse.targets.duckdb_file import DuckDBFile

# SQL for a digest of a row, on the adapters whose builds are recorded.
# Where creating a table is no part of a transaction, none of the build before is left to compare with.
ROW_HASH = {"duckdb": "hash({row})", "postgres": "hashtextextended(cast({row} as text), 0)"}
ROW_HASH |= dict.fromkeys(("bigquery", "snowflake"), "")
_VALUES = "node, build_id, code, parents, passed, stateful, relation"
# Commands that write, besides run-operation, which need not.
_WRITES = ("build", "run", "seed", "snapshot", "test", "retry", "clone")
# Parts of a table, or data that nobody has published: such builds are not what the project's files say.
_IN_PART = ("EMPTY", "SAMPLE", "VARS", "DEFER", "FAVOR_STATE", "EVENT_TIME_START", "EVENT_TIME_END")


@dataclass(frozen=True)
class _Build:
    build_id: str | None
    code: str
    parents: str


def check_by_hand() -> None:
    """Stop a command that would write a served warehouse from another checkout, or wait for a held file for nothing.

    Tasks wait for their turn in their own way.

    Raises:
        DbtRuntimeError: says who serves or holds it.
    """
    command = get_flags().WHICH  # type: ignore[no-untyped-call]
    if Path(sys.argv[0]).name != "dbt" or command not in _WRITES or dbt_target() not in TARGETS:
        return
    if not isinstance(target(), DuckDBFile):
        return
    try:
        guard.check_checkout()
        guard.check_free()
    except WarehouseError as error:
        raise DbtRuntimeError(str(error)) from error


def create_warehouse() -> None:
    """Create the warehouse's database if there is none, where nothing is loaded before dbt.

    Raises:
        DbtRuntimeError: it cannot be created; says why.
    """
    flags = get_flags()  # type: ignore[no-untyped-call]
    if flags.WHICH in (*_WRITES, "freshness") and flags.TARGET in (None, dbt_target()) and dbt_target() in TARGETS:
        try:
            target().create_working()
        except WarehouseError as error:
            raise DbtRuntimeError(str(error)) from error


def lend(manifest: Manifest) -> None:
    """Give the macros of a command their `graph.builds`.

    Args:
        manifest: the project as the command will run it, with its flat graph built.
    """
    os.environ.setdefault("PGTZ", warehouse_timezone())  # dbt's profile of PostgreSQL has no place for it
    adapter = manifest.metadata.adapter_type or ""
    dbt_values.apply(FACTORY.get_adapter_class_by_name(adapter).ConnectionManager)
    if adapter == "duckdb":
        from include.patches import dbt_index_list  # imports the adapter

        dbt_index_list.apply()
    by_hand = not ROW_HASH.get(adapter) and dbt_target() != adapter
    if adapter not in ROW_HASH or by_hand or RECORDER not in manifest.macros:
        return  # another target or project, run by hand: nobody publishes it
    recorder = Recorder(manifest)

    def build_flat_graph() -> None:  # again, after `--defer` has changed the manifest
        Manifest.build_flat_graph(manifest)  # type: ignore[no-untyped-call]
        manifest.flat_graph["builds"] = recorder

    manifest.flat_graph["builds"] = recorder
    manifest.build_flat_graph = build_flat_graph  # type: ignore[method-assign]
    for node in manifest.nodes.values():
        # Here, not in dbt_project.yml, where the project's own configuration could lose it.
        if not isinstance(node.config, NodeConfig) or node.resource_type not in IN_DATABASE:
            continue
        if all(hook.sql != RECORD_BUILD for hook in node.config.post_hook):
            node.config.post_hook.append(Hook(sql=RECORD_BUILD))
            if not ROW_HASH[adapter]:
                node.config.pre_hook.insert(0, Hook(sql=START_BUILD))


class Recorder(dict[str, Any]):
    """The records of one dbt command; an empty mapping where dbt writes its graph to a file."""

    def __init__(self, manifest: Manifest) -> None:
        """Wrap the project as dbt has just parsed it.

        Args:
            manifest: dbt's, with its flat graph built.
        """
        super().__init__()
        self._manifest = manifest
        self._at_start: dict[str, _Build] = {}
        self._last: dict[str, _Build] = {}
        self._recorded: set[str] = set()

    @cached_property
    def _graph(self) -> BuildGraph:
        manifest = self._manifest
        macros = ("name", "package_name", "macro_sql")
        return BuildGraph(
            {
                **manifest.flat_graph,
                "unit_tests": {id_: one.to_dict(omit_none=False) for id_, one in manifest.unit_tests.items()},
                "macros": {id_: {name: getattr(one, name) for name in macros} for id_, one in manifest.macros.items()},
                "metadata": {"adapter_type": manifest.metadata.adapter_type},
            }
        )

    def table(self, database: str) -> str:
        """Return the records' table, for SQL; PostgreSQL knows its own database only."""
        return identifier(database, "warehouse", "builds") if self._adapter == "duckdb" else "warehouse.builds"

    def row_hash(self, row: str) -> str:
        """Return SQL for a digest of a row."""
        return ROW_HASH[self._adapter].format(row=row)

    @property
    def _adapter(self) -> str:
        return str(self._manifest.metadata.adapter_type)

    def _literal(self, text: str) -> str:
        return literal(text) if ROW_HASH[self._adapter] else escaped_literal(text)

    def wanted(self, selected: Iterable[str]) -> list[str]:
        """Return the ids, as SQL literals, of the nodes whose latest records `start` needs."""
        ids = set(selected)
        return [self._literal(one) for one in sorted(ids.union(*(self._graph.parents(id_) for id_ in ids)))]

    def start(self, rows: Iterable[Any]) -> None:
        """Take the latest record of each wanted node: id, build id, code, parents."""
        self._at_start = {row[0]: _Build(row[1], row[2] or "", row[3] or "{}") for row in rows}
        self._last = dict(self._at_start)

    def may_be_same(self, id_: str) -> bool:
        """Return whether a table is rebuilt from the same code and parents: with equal rows it is the same build."""
        last = self._last.get(id_)
        return (
            bool(ROW_HASH[self._adapter])
            and last is not None
            and last.build_id is not None
            and not self._graph.hooks(id_, in_transaction=True)
            and not self._graph.hooks(id_, in_transaction=False)
            and (last.code, last.parents) == (self._code(id_), self._parents(id_))
        )

    def starts(self, model: Mapping[str, Any], database: str) -> str:
        """Return SQL for the record of a node whose build starts: until its end, it holds nothing that counts.

        Args:
            model: as in dbt's context.
            database: the name of the database.
        """
        id_ = model["unique_id"]
        row = self._row(id_, False, model["config"]["materialized"], _Build(None, self._code(id_), self._parents(id_)))
        return self._insert(database, [row])

    def built(self, model: Mapping[str, Any], database: str, same: bool) -> str:
        """Return SQL for the record of a model, seed or snapshot that has just been built.

        Args:
            model: as in dbt's context.
            database: the name of the database, which views may differ in.
            same: whether the table holds the rows of the build before.
        """
        id_ = model["unique_id"]
        self._recorded.add(id_)
        kind, code, parents = model["config"]["materialized"], self._code(id_), self._parents(id_)
        build_id = str(uuid.uuid4())
        if same:
            build_id = str(self._last[id_].build_id)
        elif (kind == "view" and not self._graph.reads_outside(id_)) or (
            kind == "seed" and model["checksum"]["name"] != "path"
        ):
            sql = (model.get("compiled_code") or "").replace(f'"{database}".', "")
            build_id = md5(f"{code}{sql}{parents}".encode(), usedforsecurity=False).hexdigest()
        self._last[id_] = _Build(build_id, code, parents)
        # A hook outside the transaction may fail yet.
        return self._insert(database, [self._row(id_, not self._graph.hooks(id_, in_transaction=False), kind)])

    def finished(self, results: Iterable[Any], database: str) -> str:
        """Return SQL for the records of a command's tests, and of models that could not record themselves.

        Args:
            results: as in dbt's `on-run-end`.
            database: the name of the database.
        """
        rows = []
        # Models first: a test that dbt has run after one read what it built.
        for result in sorted(results, key=lambda one: one.node.resource_type in ("test", "unit_test")):
            id_, kind, status = result.node.unique_id, str(result.node.resource_type), str(result.status)
            if status == "skipped":
                continue
            if kind in ("test", "unit_test"):
                self._last[id_] = _Build(None, self._code(id_), self._parents(id_))
                rows.append(self._row(id_, status in ("pass", "warn")))
            elif self._graph.is_built(id_):
                passed = status == "success"
                if id_ in self._recorded:
                    if not passed or self._graph.hooks(id_, in_transaction=False):
                        rows.append(self._row(id_, passed, result.node.config.materialized))
                elif passed:  # by a materialization that runs no hooks
                    self._last[id_] = _Build(str(uuid.uuid4()), self._code(id_), self._parents(id_))
                    rows.append(self._row(id_, True, result.node.config.materialized))
        return self._insert(database, rows) if rows else ""

    def passed_tables(self, results: Iterable[Any]) -> list[str]:
        """Return, as SQL literals `schema.table`, where the failing rows of tests that pass now may still be."""
        passed = [one.node.unique_id for one in results if one.node.resource_type == "test" and one.status == "pass"]
        return [literal(found) for id_ in passed if (found := self._graph.relation(id_))]

    def _code(self, id_: str) -> str:
        flags = get_flags()  # type: ignore[no-untyped-call]
        in_part = any(getattr(flags, name, None) for name in _IN_PART)
        elsewhere = flags.TARGET not in (None, dbt_target())
        return self._graph.code(id_) + (" in part" if in_part or elsewhere else "")

    def _parents(self, id_: str) -> str:
        # What dbt knows no parents of may have run before the rest of the command.
        known = self._last if self._graph.names_parents(id_) else self._at_start
        found = {one: known[one].build_id for one in self._graph.parents(id_) if one in known}
        return json.dumps({one: build for one, build in found.items() if build}, sort_keys=True)

    def _row(self, id_: str, passed: bool, kind: str = "", build: _Build | None = None) -> str:
        found = build or self._last[id_]
        texts = [self._literal(one) for one in (id_, found.build_id or "", found.code, found.parents)]
        stateful = kind in ("incremental", "snapshot")
        relation = self._literal(self._graph.relation(id_))
        values = [*texts, str(passed).lower(), str(stateful).lower(), relation]
        named = zip(values, _VALUES.split(", "), strict=True)
        return f"select {', '.join(f'{value} as {name}' for value, name in named)}"

    def _insert(self, database: str, rows: list[str]) -> str:
        table, values = self.table(database), "\nunion all ".join(rows)
        listed = _VALUES.replace("build_id", "nullif(build_id, '')")
        return (
            f"insert into {table} (version, {_VALUES}, run_id, recorded_at)\n"
            f"select (select coalesce(max(version), 0) + 1 from {table}), {listed}, {literal(get_invocation_id())},"
            f" current_timestamp\nfrom ({values}) as these"
        )
