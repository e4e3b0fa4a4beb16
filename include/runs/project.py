"""Table metadata from dbt's manifest: descriptions, tests, lineage, owners, personal data."""

import gzip
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from include.errors import storage_errors
from include.runs import artifacts, manifest
from include.warehouse import paths

logger = logging.getLogger(__name__)

_RELATIONS = ("model", "seed", "snapshot", "source")
# Column names that dbt's generic tests give their failing rows; they hold values of the tested column.
VALUE_COLUMNS = {"unique": "unique_field", "accepted_values": "value_field", "relationships": "from_field"}
_COUNTS = ("n_records",)
# A test with these settings passes only if no row fails it.
_UNCONDITIONAL = {"severity": "error", "error_if": "!= 0", "fail_calc": "count(*)", "where": "", "limit": ""}


@dataclass(frozen=True)
class Column:
    """A documented column."""

    name: str
    description: str
    contains_pii: bool


@dataclass(frozen=True)
class Node:
    """A model, seed, snapshot, source table or exposure.

    Attributes:
        schema: its schema in the database; empty for an exposure.
        table: its table name in the database.
        owner_email: of an exposure's owner, or a group's.
        url: of an exposure.
        materialized: how dbt builds it: table, view, ...; `source` or `exposure` for those.
        depends_on: unique ids of its parents.
        columns: documented columns, by lower-case name.
    """

    unique_id: str
    name: str
    kind: str
    schema: str
    table: str
    materialized: str
    description: str
    owner: str
    tags: tuple[str, ...]
    depends_on: tuple[str, ...]
    columns: dict[str, Column]
    freshness: dict[str, Any] | None
    owner_email: str = ""
    url: str = ""


@dataclass(frozen=True)
class Test:
    """A data test or a unit test.

    Attributes:
        title: what it checks, in plain words.
        kind: name of the generic test, such as `not_null` or `dbt_utils.equality`; `unit`; empty for a test of its own.
        is_conditional: whether rows that fail it may pass: it warns, tolerates some, or looks at some rows only.
        column: the tested column, for a column test.
        node: unique id of the node it is attached to.
        depends_on: unique ids of all nodes it reads.
    """

    unique_id: str
    name: str
    title: str
    kind: str
    is_conditional: bool
    description: str
    column: str
    node: str
    depends_on: tuple[str, ...]
    severity: str


@dataclass(frozen=True)
class Project:
    """A manifest, reduced to what the UI shows."""

    nodes: dict[str, Node] = field(default_factory=dict)
    tests: dict[str, Test] = field(default_factory=dict)

    def node_of(self, schema: str, table: str) -> Node | None:
        """Return the dbt node of a table, or None."""
        return self._by_table.get((schema.lower(), table.lower()))

    def tests_of(self, node_id: str) -> list[Test]:
        """Return the tests that read a node, by name."""
        return list(self._by_node.get(node_id, ()))

    @cached_property
    def _by_table(self) -> dict[tuple[str, str], Node]:
        found: dict[tuple[str, str], Node] = {}
        for node in self.nodes.values():
            found.setdefault((node.schema.lower(), node.table.lower()), node)
        return found

    @cached_property
    def _by_node(self) -> dict[str, list[Test]]:
        found: dict[str, list[Test]] = {}
        for test in sorted(self.tests.values(), key=lambda test: (test.column, test.name)):
            for one in {test.node, *test.depends_on}:
                found.setdefault(one, []).append(test)
        return found

    def is_open(self, node: Node | None, column: str) -> bool:
        """Return whether anyone may see a column's values: it is documented, and not as personal data."""
        known = node.columns.get(column.lower()) if node else None
        return known is not None and not known.contains_pii

    def is_open_in_test(self, test: Test | None, column: str) -> bool:
        """Return whether anyone may see a column of a test's failing rows."""
        if column.lower() in _COUNTS:
            return True
        nodes = [self.nodes[one] for one in test.depends_on if one in self.nodes] if test else []
        if test and column.lower() in VALUE_COLUMNS.values():
            return bool(test.column) and any(self.is_open(node, test.column) for node in nodes)
        known = [node.columns[column.lower()] for node in nodes if column.lower() in node.columns]
        return bool(known) and not any(one.contains_pii for one in known)

    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for parent in node.depends_on:
                children.setdefault(parent, []).append(node.unique_id)
        return children

    def descendants(self, node_ids: Iterable[str]) -> list[Node]:
        """Return all that is built from these nodes, without them, by name."""
        start = set(node_ids)
        found = _reachable(start, self._children())
        return sorted((self.nodes[one] for one in found - start), key=lambda node: (node.kind, node.name))

    def lineage(self, node_id: str) -> tuple[list[list[Node]], list[tuple[str, str]]]:
        """Return a node's ancestors and descendants, for drawing.

        Returns:
            Layers from the most distant ancestors to the most distant descendants, and the edges between them.
        """
        parents = {node.unique_id: list(node.depends_on) for node in self.nodes.values()}
        depth = {one: -steps for one, steps in _distances(node_id, parents, self.nodes).items()}
        depth |= _distances(node_id, self._children(), self.nodes)
        layers: dict[int, list[Node]] = {}
        for one in sorted(depth, key=lambda one: self.nodes[one].name):
            layers.setdefault(depth[one], []).append(self.nodes[one])
        edges = [(parent, one) for one in depth for parent in parents[one] if parent in depth]
        return [layers[at] for at in sorted(layers)], edges

    def whole_lineage(self, words: str = "") -> tuple[list[list[Node]], list[tuple[str, str]], set[str]]:
        """Return the graph of all nodes, or of those that have some words and of all above and below them.

        Args:
            words: all of which a node's name, schema, owner or tags must have.

        Returns:
            Layers from the sources on, the edges between them, and the unique ids of the nodes that have the words.
        """
        wanted = words.lower().split()
        found = {
            one.unique_id
            for one in self.nodes.values()
            if wanted and all(word in " ".join((one.name, one.schema, one.owner, *one.tags)).lower() for word in wanted)
        }
        parents = {
            node.unique_id: [one for one in node.depends_on if one in self.nodes] for node in self.nodes.values()
        }
        shown = set(self.nodes)
        if wanted:
            shown = found | _reachable(found, self._children()) | _reachable(found, parents)
        depth = _depths({one: [above for above in parents[one] if above in shown] for one in sorted(shown)})
        layers: dict[int, list[Node]] = {}
        for one in sorted(shown, key=lambda one: (depth[one], self.nodes[one].name)):
            layers.setdefault(depth[one], []).append(self.nodes[one])
        place: dict[str, float] = {}
        for at in sorted(layers):  # near their parents, so that few edges cross
            middle = {
                node.unique_id: [place[one] for one in parents[node.unique_id] if one in place] for node in layers[at]
            }
            layers[at].sort(
                key=lambda node: (
                    sum(middle[node.unique_id]) / len(middle[node.unique_id]) if middle[node.unique_id] else 0
                )
            )
            place |= {node.unique_id: row / len(layers[at]) for row, node in enumerate(layers[at])}
        edges = [(above, one) for one in shown for above in parents[one] if above in shown]
        return [layers[at] for at in sorted(layers)], edges, found


def _reachable(start: Iterable[str], neighbours: dict[str, list[str]]) -> set[str]:
    """Return all nodes that a path of at least one step leads to."""
    found: set[str] = set()
    border = list(start)
    while border:
        new = set(neighbours.get(border.pop(), ())) - found
        found |= new
        border += new
    return found


def _depths(parents: dict[str, list[str]]) -> dict[str, int]:
    """Return the length of the longest path to each node from one without parents."""
    depth: dict[str, int] = {}
    for start in parents:
        stack = [start]
        while stack:
            one = stack[-1]
            missing = [above for above in parents[one] if above not in depth]
            if one in depth or not missing:
                depth.setdefault(one, 1 + max((depth[above] for above in parents[one]), default=-1))
                stack.pop()
            else:
                stack += missing
    return depth


def _distances(start: str, neighbours: dict[str, list[str]], nodes: Iterable[str]) -> dict[str, int]:
    """Return the length of the longest path from start to each reachable node."""
    known, found, border = set(nodes), {start: 0}, [start]
    while border:
        one = border.pop()
        for other in neighbours.get(one, []):
            if other in known and found.get(other, -1) < found[one] + 1 <= len(known):
                found[other] = found[one] + 1
                border.append(other)
    return found


def of_run(run_id: str | None) -> Project:
    """Return the dbt project as of a run's publish; failing that the current one, or an empty one.

    Args:
        run_id: the run that published the current state.
    """
    path = manifest_path(run_id)
    if path is None:
        return Project()
    try:
        return read(path)
    except storage_errors(EOFError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read as dbt's manifest: %s", path, error)
        return Project()


def manifest_path(run_id: str | None) -> Path | None:
    """Return the manifest kept by a run, else the one that was parsed last, else None."""
    kept = paths.run_artifacts_dir(run_id) / artifacts.MANIFEST if run_id else None
    return kept if kept and kept.exists() else manifest.latest()


def read_manifest(path: Path) -> bytes:
    """Return a manifest's JSON text, decompressed if needed."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def read(path: Path) -> Project:
    """Parse a manifest.

    Raises:
        OSError, EOFError, ValueError, KeyError, TypeError: the file is unreadable or not a manifest.
    """
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _modified_ns: int) -> Project:
    return of_manifest(json.loads(read_manifest(path)))


def of_manifest(manifest: dict[str, Any]) -> Project:
    """Return the project that dbt's manifest describes.

    Args:
        manifest: decoded.

    Raises:
        KeyError, TypeError: it is no manifest.
    """
    groups = {group["name"]: group.get("owner") or {} for group in (manifest.get("groups") or {}).values()}
    nodes, tests = {}, {}
    for raw in [*manifest["nodes"].values(), *manifest["sources"].values(), *manifest["exposures"].values()]:
        kind = raw["resource_type"]
        if kind in (*_RELATIONS, "exposure"):
            nodes[raw["unique_id"]] = _node(raw, kind, groups)
        elif kind == "test":
            tests[raw["unique_id"]] = _test(raw)
    for raw in (manifest.get("unit_tests") or {}).values():
        tests[raw["unique_id"]] = _unit_test(raw)
    return Project(nodes, tests)


def _node(raw: dict[str, Any], kind: str, groups: dict[str, dict[str, Any]]) -> Node:
    config = raw.get("config") or {}
    meta = config.get("meta") or raw.get("meta") or {}
    owner = raw.get("owner") or groups.get(config.get("group") or raw.get("group") or "") or {}
    columns = {name.lower(): _column(name, column) for name, column in (raw.get("columns") or {}).items()}
    in_database = kind in _RELATIONS
    return Node(
        unique_id=raw["unique_id"],
        name=raw.get("label") or raw["name"],
        kind=kind,
        schema=raw["schema"] if in_database else "",
        table=(raw.get("identifier") or raw.get("alias") or raw["name"]) if in_database else "",
        materialized=str(config.get("materialized") or kind),
        description=(raw.get("description") or "").strip(),
        owner=str(owner.get("name") or owner.get("email") or meta.get("owner") or ""),
        tags=tuple(raw.get("tags") or ()),
        depends_on=tuple((raw.get("depends_on") or {}).get("nodes") or ()),
        columns=columns,
        freshness=raw.get("freshness") or config.get("freshness") if kind == "source" else None,
        owner_email=str(owner.get("email") or ""),
        url=str(raw.get("url") or "") if kind == "exposure" else "",
    )


def _column(name: str, raw: dict[str, Any]) -> Column:
    meta = {**(raw.get("meta") or {}), **((raw.get("config") or {}).get("meta") or {})}
    return Column(name, (raw.get("description") or "").strip(), bool(meta.get("contains_pii")))


def _test(raw: dict[str, Any]) -> Test:
    column, metadata = raw.get("column_name") or "", raw.get("test_metadata") or {}
    if column.startswith('"') and column.endswith('"'):  # of a column with `quote: true`
        column = column[1:-1]
    config = raw.get("config") or {}
    depends_on = tuple((raw.get("depends_on") or {}).get("nodes") or ())
    node = raw.get("attached_node") or (depends_on[-1] if depends_on else "")
    subject = f"{node.split('.')[-1]}.{column}" if column else node.split(".")[-1]
    generic = str(metadata.get("name") or "")
    return Test(
        unique_id=raw["unique_id"],
        name=raw["name"],
        title=f"{subject}: {generic.replace('_', ' ')}" if generic else raw["name"].replace("_", " "),
        kind=f"{metadata['namespace']}.{generic}" if metadata.get("namespace") else generic,
        is_conditional=any(str(config.get(name) or usual).lower() != usual for name, usual in _UNCONDITIONAL.items()),
        description=(raw.get("description") or "").strip(),
        column=column,
        node=node,
        depends_on=depends_on,
        severity=str(config.get("severity") or "error").lower(),
    )


def _unit_test(raw: dict[str, Any]) -> Test:
    depends_on = tuple((raw.get("depends_on") or {}).get("nodes") or ())
    return Test(
        unique_id=raw["unique_id"],
        name=raw["name"],
        title=f"{raw['model']}: {raw['name'].replace('_', ' ')}",
        kind="unit",
        is_conditional=False,
        description=(raw.get("description") or "").strip(),
        column="",
        node=depends_on[0] if depends_on else "",
        depends_on=depends_on,
        severity="error",
    )
