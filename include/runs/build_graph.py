"""Which nodes of a dbt project count, their code and their parents: defined here, and nowhere else.

Tasks (`tasks`, which Cosmos renders), records (`recorder.py`, in dbt) and publish's demand (`nodes`) follow from it.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from include.errors import PipelineError
from include.warehouse.builds import Node

IN_DATABASE = ("model", "seed", "snapshot")
# Materializations that leave a table or a view of the node's name.
_RELATIONS = ("table", "view", "incremental", "seed", "snapshot", "materialized_view")
_WORD = re.compile(r"[A-Za-z_]\w*")
_NOT_IN_IDS = re.compile(r"[^\w-]")  # of Airflow's tasks
# What separates, joins or widens selections, or is a template of Airflow's: folders may have such names.
_NOT_IN_SELECTIONS = re.compile(r"[^\w.:/-]")
# How Cosmos calls a task, where that is not the kind of its node.
_SUFFIXES = {"model": "run"}
# In characters; Airflow's ids have up to 250, with those of the groups.
_LONGEST_NAME = 200
# The machinery's own macros, of which an upgrade does not change what a model says; and the schema of its own tables.
_MACHINERY = "warehouse"
# The post-hook that `recorder.py` gives each node.
RECORD_BUILD = "{{ warehouse.record_build() }}"
# And, where creating a table is no part of a transaction, a pre-hook.
START_BUILD = "{{ warehouse.start_build() }}"
RECORDER = "macro.warehouse.record_build"


class UnsupportedNodeError(PipelineError):
    """The pipeline cannot run a node of the project."""


class BuildGraph:
    """The nodes of a dbt project that must be current before publish.

    Attributes:
        manifest: dbt's `manifest.json`, decoded.
    """

    def __init__(self, manifest: Mapping[str, Any], selected: Iterable[str] | None = None) -> None:
        """Wrap a manifest.

        Args:
            manifest: dbt's `manifest.json`, decoded; parts that it lacks are empty.
            selected: unique ids of the models, seeds, snapshots and data tests that count, where another DAG has the
                others; a unit test counts with its model.
        """
        self.manifest = manifest
        self._selected = None if selected is None else set(selected)
        self._codes: dict[str, str] = {}
        # A test of a disabled source stays among them, disabled (dbt 1.11).
        self._nodes: Mapping[str, Any] = {
            id_: node for id_, node in manifest["nodes"].items() if (node.get("config") or {}).get("enabled", True)
        }
        self._sources: Mapping[str, Any] = manifest.get("sources") or {}
        self._unit_tests: Mapping[str, Any] = manifest.get("unit_tests") or {}
        self._functions: Mapping[str, Any] = manifest.get("functions") or {}

    @cached_property
    def nodes(self) -> list[Node]:
        """All models, seeds, snapshots, data tests and unit tests that must be current."""
        wanted = [id_ for id_ in self._nodes if self.is_built(id_) or self._nodes[id_]["resource_type"] == "test"]
        return [
            Node(id_, self.code(id_), self.parents(id_)) for id_ in (*wanted, *self._unit_tests) if self._counts(id_)
        ]

    @cached_property
    def relations(self) -> dict[str, str]:
        """The tables and views of those nodes, including the tests' audit tables, as `schema.table`, by unique id."""
        return {node.id: found for node in self.nodes if (found := self.relation(node.id))}

    @cached_property
    def must_exist(self) -> set[str]:
        """Those relations that are there once their node has been built: of a test, only failing rows leave one."""
        return {
            relation
            for id_, relation in self.relations.items()
            if self.is_built(id_) and self._materialized(id_) in _RELATIONS
        }

    def relation(self, id_: str) -> str:
        """Return a node's table or view as `schema.table`; empty if it has none in the warehouse's database."""
        node = self._nodes.get(id_)
        if node is None or (node.get("config") or {}).get("database"):  # one that the user has attached
            return ""
        if node["resource_type"] == "test" and not node.get("relation_name"):
            return ""
        return f"{node['schema']}.{node['alias']}"

    def is_built(self, id_: str) -> bool:
        """Return whether a task builds this node: a model, seed or snapshot that is not only inlined elsewhere."""
        node = self._nodes.get(id_)
        return node is not None and node["resource_type"] in IN_DATABASE and not self._is_inlined(id_)

    def code(self, id_: str) -> str:
        """Return the digest of a node's definition: SQL, config, relation, macros, inlined models and functions.

        Args:
            id_: dbt unique id of a node, unit test or function.
        """
        if id_ not in self._codes:
            self._codes[id_] = hashlib.md5(self._definition(id_).encode(), usedforsecurity=False).hexdigest()
        return self._codes[id_]

    def parents(self, id_: str) -> tuple[str, ...]:
        """Return the ids of a node's parents, looking through ephemeral models; loaded tables as `schema.table`.

        A node that names none reads something all the same: a model any loaded table, a test any table.
        """
        if id_ not in self._nodes or self._nodes[id_]["resource_type"] == "seed":
            return ()
        if self._depends_on(id_):
            return tuple(dict.fromkeys(self._known_parents(id_)))
        built = self._built if self._nodes[id_]["resource_type"] == "test" else ()
        return (*self._loaded, *built)

    def names_parents(self, id_: str) -> bool:
        """Return whether dbt knows what a node reads."""
        return bool(self._depends_on(id_))

    def is_loaded(self, id_: str) -> bool:
        """Return whether a source's table must be loaded: no node makes it, and dbt does not read it elsewhere."""
        found = self._source_parent(id_)
        return found is not None and found not in self._nodes

    def reads_outside(self, id_: str) -> bool:
        """Return whether a node reads, other than from the warehouse's tables, what may change at any time."""
        depends_on = self._depends_on(id_)
        return not depends_on or any(
            (one in self._sources and self._source_parent(one) is None)
            or (self._is_inlined(one) and self.reads_outside(one))
            for one in depends_on
        )

    def hooks(self, id_: str, *, in_transaction: bool) -> list[str]:
        """Return the SQL of the user's own post-hooks of a node."""
        found = _config(self._nodes[id_]).get("post-hook") or []
        return [one["sql"] for one in found if bool(one.get("transaction", True)) == in_transaction]

    def tasks(self) -> dict[str, Any]:
        """Return a manifest for Cosmos with nothing but the tasks.

        Cosmos renders a node with its tests, and tests of several nodes on their own. What it would leave out is put
        in these terms: a unit test is a test of its model, the tests of a source are one test, a seed that is read as
        a source is a parent, and a test that names no node reads all of them. Each node also has the keys

            counts    ids of the nodes that the task builds or tests
            select    dbt's selection for it
            but       of the tests of this node, those that are tasks of their own

        Raises:
            UnsupportedNodeError: the project has functions of dbt 1.11, or a node whose table would be among the
                pipeline's own.
        """
        self._check_supported()
        of_sources = self._tests_of_sources()
        in_group = {test for tests in of_sources.values() for test in tests}
        alone = self._tests_alone() - in_group
        waits = {one: id_ for id_, tests in of_sources.items() for test in tests for one in self._depends_on(test)}
        ids = self._task_ids(alone)

        def parents(id_: str) -> list[str]:
            found = [ids[one] for one in self._read_by_tests.get(id_, ())]
            for one in self._depends_on(id_):
                made_by = self._source_parent(one) if one in self._sources else one
                found.append(ids.get(made_by or "", one))
                if one in waits and self._nodes[id_]["resource_type"] != "test":
                    found.append(waits[one])
            return found

        tasks: dict[str, Any] = {}
        for id_, node in self._nodes.items():
            if node["resource_type"] in IN_DATABASE or (
                node["resource_type"] == "test" and id_ not in alone | in_group
            ):
                tasks[ids[id_]] = self._task(ids[id_], node, parents(id_), [id_])
        for id_ in alone:
            read = [one for one in parents(id_) if one in tasks] or [ids[one] for one in self._built]
            tasks[ids[id_]] = self._task(ids[id_], self._nodes[id_], _several(read), [id_])
        for id_, tests in of_sources.items():
            first = {**self._nodes[tests[0]], "description": "", "config": {}}
            tasks[id_] = self._task(id_, first, _several(one for test in tests for one in parents(test)), tests)
        for id_, test in self._unit_tests.items():
            model = ids[test["depends_on"]["nodes"][0]]
            tasks[id_] = self._task(id_, {**test, "resource_type": "test", "config": {}}, [model], [id_])
        for id_, tests in self._tests_elsewhere(alone, in_group).items():
            if task := tasks.get(ids[id_]):
                task["but"] = " ".join(self._selection(one) for one in tests)
        return {"nodes": tasks, "sources": self._sources_of_tasks(), "metadata": self.manifest.get("metadata") or {}}

    def _check_supported(self) -> None:
        if self._functions:
            raise UnsupportedNodeError(
                f"{', '.join(one.rsplit('.', 1)[-1] for one in self._functions)} (functions/): no task can create a"
                " function, as dbt-duckdb 1.11 cannot, and Cosmos 1.15 has no operator for it. Use a macro instead."
            )
        tables = {id_: self.relation(id_).lower() for id_ in self._nodes if not self._is_inlined(id_)}
        mixed = [id_ for id_, table in tables.items() if table.startswith(f"{_MACHINERY}.")]
        if mixed:
            raise UnsupportedNodeError(
                f"{', '.join(one.split('.')[2] for one in mixed)}: the schema {_MACHINERY} has the pipeline's own"
                " tables. Choose another schema for them."
            )

    @cached_property
    def _read_by_tests(self) -> dict[str, list[str]]:
        """By test and tested node, the models that tests of packages may read without naming them: the packages' own.

        elementary's do. A package whose models read anything else is left out: a test of theirs could be among it.
        """
        models: dict[str, list[str]] = defaultdict(list)
        for id_ in self._built:
            models[self._nodes[id_]["package_name"]].append(id_)
        closed = {
            name: ids
            for name, ids in models.items()
            if all(one.split(".")[1] == name and one in self._nodes for id_ in ids for one in self._depends_on(id_))
        }
        found: dict[str, set[str]] = defaultdict(set)
        for id_, node in self._nodes.items():
            namespace = str((node.get("test_metadata") or {}).get("namespace") or "")
            if namespace in closed:
                # Not of the test: with more parents it would be a task of its own. One of sources is that already.
                tested = [one for one in self._depends_on(id_) if one in self._nodes] or [id_]
                for one in tested:
                    if self._nodes[one]["package_name"] != namespace:
                        found[one].update(closed[namespace])
        return {id_: sorted(some) for id_, some in found.items()}

    def _sources_of_tasks(self) -> dict[str, Any]:
        kept = ["unique_id", "resource_type", "package_name", "original_file_path", "fqn", "tags", "config"]
        kept += ["freshness", "source_name"]
        return {
            id_: {**{key: one.get(key) for key in kept}, "outside": self._source_parent(id_) is None}
            for id_, one in self._sources.items()
        }

    def _task_ids(self, alone: Iterable[str]) -> dict[str, str]:
        """Return an id for each node, of which Cosmos makes the name of its task or group.

        The node's own, unless two tasks would have one name, as models of one name in two packages, or `a.b` and
        `a_b`, or Airflow would not take it.
        """
        found = {id_: id_ for id_ in self._nodes}
        taken: set[str] = set()
        tests = set(alone)
        for id_, node in self._nodes.items():
            kind, package, name = id_.split(".", 2)
            if id_ in tests:
                names = [name.split(".")[0]]
                suffix = "test"
            elif node["resource_type"] in IN_DATABASE:
                names = [name, f"{package}__{name}"]
                suffix = _SUFFIXES.get(kind, kind)
            else:
                continue
            digest = hashlib.md5(id_.encode(), usedforsecurity=False).hexdigest()[:8]
            for one in (*names, f"{names[0][:_LONGEST_NAME]}_{digest}"):
                called = _NOT_IN_IDS.sub("_", one)
                tasks = {f"{called}_{suffix}"} | (set() if id_ in tests else {called})
                if len(called) <= _LONGEST_NAME + 9 and not tasks & taken:
                    taken |= tasks
                    if one != names[0] or re.search(r"[^\w.-]", one):
                        found[id_] = f"{kind}.{package}.{called}"
                    break
        return found

    def _task(self, id_: str, node: Mapping[str, Any], parents: Iterable[str], counts: Sequence[str]) -> dict[str, Any]:
        kept = ("resource_type", "package_name", "original_file_path", "fqn", "tags", "schema", "alias", "description")
        config = node.get("config") or {}
        # Each task reads this: no long texts.
        wanted = ("meta",) if node["resource_type"] == "test" else config.keys() - {"pre-hook", "post-hook"}
        return {
            "unique_id": id_,
            **{key: node.get(key) for key in kept},
            "config": {key: config[key] for key in sorted(wanted) if config.get(key)},
            "depends_on": {"nodes": list(parents)},
            "counts": counts,
            "select": " ".join(self._selection(one) for one in counts),
        }

    def _selection(self, id_: str) -> str:
        """Return what selects one node for dbt: its name with its folders; and its file, if another has that name."""
        node = self._nodes.get(id_) or self._unit_tests[id_]
        name, path = ".".join(node["fqn"]), node["original_file_path"]
        found = f"fqn:{_NOT_IN_SELECTIONS.sub('?', name)}"
        if node["resource_type"] == "test" and tuple(node["fqn"]) in self._names:
            of_project = node["package_name"] == (self.manifest.get("metadata") or {}).get("project_name")
            # dbt knows the paths of the project's own files only.
            return f"{found},{'path:' + _NOT_IN_SELECTIONS.sub('?', path) if of_project else 'test_type:singular'}"
        return f"{found},file:{_NOT_IN_SELECTIONS.sub('?', Path(path).name)}" if name in self._folders else found

    @cached_property
    def _folders(self) -> set[str]:
        """All beginnings of the names of nodes: dbt would select what is in such a folder, too."""
        found = (one["fqn"][:length] for one in self._nodes.values() for length in range(1, len(one.get("fqn") or ())))
        return {".".join(one) for one in found}

    def _tests_elsewhere(self, alone: set[str], of_sources: set[str]) -> dict[str, list[str]]:
        """Return, by node, the tests that dbt would run with those of the node, and that run in another task."""
        found: dict[str, list[str]] = defaultdict(list)
        for id_, node in self._nodes.items():
            if node["resource_type"] != "test":
                continue
            own_task = id_ in alone | of_sources
            reads = [one for one in self._depends_on(id_) if one in self._nodes]
            namesake = self._names.get(tuple(node["fqn"]))
            for one in dict.fromkeys([*(reads if own_task else ()), *([namesake] if namesake else ())]):
                if own_task or one not in reads:
                    found[one].append(id_)
        return found

    @cached_property
    def _names(self) -> dict[tuple[str, ...], str]:
        """The models, seeds and snapshots by the name that dbt selects; a singular test may have it, too."""
        return {tuple(node["fqn"]): id_ for id_, node in self._nodes.items() if node["resource_type"] in IN_DATABASE}

    def _tests_alone(self) -> set[str]:
        """Return the ids of the data tests that are tasks of their own: they read not just one node, or none."""
        tests = {id_ for id_, node in self._nodes.items() if node["resource_type"] == "test"}
        known = {id_: [one for one in self._depends_on(id_) if one in self._nodes] for id_ in tests}
        return {id_ for id_ in tests if len(known[id_]) != 1 or len(self._depends_on(id_)) > 1}

    def _tests_of_sources(self) -> dict[str, list[str]]:
        """Return the data tests that read sources only, by the id of their task: one for each source.

        Tables that the project itself makes have one each: another of the source may be made from it.
        """
        found: dict[str, list[str]] = defaultdict(list)
        for id_, node in self._nodes.items():
            parents = self._depends_on(id_)
            if node["resource_type"] == "test" and parents and all(one in self._sources for one in parents):
                source = self._sources[parents[0]]
                made = self._source_parent(parents[0]) in self._nodes
                name = f"{source['source_name']}_{source['name']}" if made else source["source_name"]
                found[f"test.{source['package_name']}.source_{_NOT_IN_IDS.sub('_', name)}"].append(id_)
        return dict(found)

    def _definition(self, id_: str) -> str:
        if unit_test := self._unit_tests.get(id_):
            return str(unit_test["checksum"]) + self.code(unit_test["depends_on"]["nodes"][0])
        node = self._nodes.get(id_) or self._functions[id_]
        parts = [
            node.get("raw_code"),
            node["checksum"]["checksum"],
            {name: value for name, value in _config(node).items() if name != "docs"},
            node.get("contract"),
            node.get("test_metadata"),
            [node.get("schema"), node.get("alias")],
            {name: self._macros[name]["macro_sql"] for name in self._macros_of(node)},
            [self.code(one) for one in self._depends_on(id_) if one in self._functions or self._is_inlined(one)],
        ]
        return json.dumps(parts, sort_keys=True, default=_as_text)

    @property
    def _macros(self) -> Mapping[str, Any]:
        return self.manifest.get("macros") or {}

    @cached_property
    def _macros_by_name(self) -> dict[str, set[str]]:
        """Ids of the project's and its packages' macros, by name; without the prefix by which `dispatch` chooses."""
        found = defaultdict(set)
        for id_, macro in self._macros.items():
            if macro["package_name"] not in self._of_dbt | {_MACHINERY}:
                found[macro["name"]].add(id_)
                found[macro["name"].split("__", 1)[-1]].add(id_)
        return found

    @cached_property
    def _of_dbt(self) -> set[str]:
        return {"dbt", f"dbt_{self._adapter}"}

    @property
    def _adapter(self) -> str:
        return str((self.manifest.get("metadata") or {}).get("adapter_type") or "duckdb")

    @cached_property
    def _overrides(self) -> set[str]:
        """Ids of macros that replace dbt's own, which may be called for any node."""
        names = {one["name"] for one in self._macros.values() if one["package_name"] in self._of_dbt}
        names |= {name.split("__", 1)[-1] for name in names}
        return {id_ for name in names for id_ in self._macros_by_name.get(name, ())}

    def _macros_of(self, node: Mapping[str, Any]) -> set[str]:
        """Return the ids of all macros whose name a node mentions, and those mention, besides dbt's own.

        dbt's `depends_on.macros` lacks those that it finds only at run time, and has them afterwards.
        """
        config = _config(node)
        words = _words(node.get("raw_code") or "")
        words |= {
            word for hook in ("pre-hook", "post-hook") for one in config.get(hook) or () for word in _words(one["sql"])
        }
        for name in ("default", self._adapter):
            words.add(f"materialization_{config.get('materialized')}_{name}")
        words.add(f"get_incremental_{config.get('incremental_strategy')}_sql")
        words.add(f"snapshot_{config.get('strategy')}_strategy")
        found: set[str] = set()
        todo = {id_ for word in words for id_ in self._macros_by_name.get(word, ())} | self._overrides
        while todo:
            found |= todo
            todo = {one for id_ in todo for one in self._mentioned(id_)} - found
        return found

    @cached_property
    def _mentions(self) -> dict[str, set[str]]:
        return {}

    def _mentioned(self, macro: str) -> set[str]:
        if macro not in self._mentions:
            words = _words(self._macros[macro]["macro_sql"])
            self._mentions[macro] = {id_ for word in words for id_ in self._macros_by_name.get(word, ())}
        return self._mentions[macro]

    def _depends_on(self, id_: str) -> list[str]:
        node = self._nodes.get(id_) or self._functions.get(id_) or {}
        return list((node.get("depends_on") or {}).get("nodes") or ())

    def _known_parents(self, id_: str) -> list[str]:
        found: list[str] = []
        for parent in self._depends_on(id_):
            if parent in self._sources:
                if known := self._source_parent(parent):
                    found.append(known)
            elif self._is_inlined(parent) or parent in self._functions:
                found += self.parents(parent) if parent in self._nodes else self._known_parents(parent)
            elif parent in self._nodes:
                found.append(parent)
        return found

    def _source_parent(self, id_: str) -> str | None:
        """Return the node that makes a source's table, else the table as loaded; None if dbt reads it elsewhere."""
        source = self._sources[id_]
        settings = {**(source.get("meta") or {}), **(source.get("config") or {})}
        settings |= settings.get("meta") or {}
        settings |= source.get("source_meta") or {}
        if settings.get("external_location") or settings.get("plugin") or source.get("unrendered_database"):
            return None
        relation = f"{source['schema']}.{source['identifier']}"
        return self._makers.get(relation, relation)

    @cached_property
    def _makers(self) -> dict[str, str]:
        return {self.relation(id_): id_ for id_ in self._nodes if self.is_built(id_)}

    @cached_property
    def _built(self) -> tuple[str, ...]:
        return tuple(id_ for id_ in self._nodes if self.is_built(id_) and self._counts(id_))

    @cached_property
    def _loaded(self) -> tuple[str, ...]:
        """The loaded tables that any node which counts reads."""
        found = (
            one for id_ in self._nodes if self._counts(id_) for one in self._depends_on(id_) if one in self._sources
        )
        tables = (self._source_parent(one) for one in found)
        return tuple(dict.fromkeys(one for one in tables if one and one not in self._nodes))

    def _materialized(self, id_: str) -> str:
        return str((self._nodes[id_].get("config") or {}).get("materialized"))

    def _is_inlined(self, id_: str) -> bool:
        return id_ in self._nodes and self._materialized(id_) == "ephemeral"

    def _counts(self, id_: str) -> bool:
        if self._selected is None or id_ in self._selected:
            return True
        return id_ in self._unit_tests and self._unit_tests[id_]["depends_on"]["nodes"][0] in self._selected


def _config(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's config as the project has it, without the hooks of `recorder.py`."""
    config = dict(node.get("config") or {})
    for kind in ("pre-hook", "post-hook"):
        if hooks := config.get(kind):
            config[kind] = [one for one in hooks if one["sql"] not in (RECORD_BUILD, START_BUILD)]
    return config


def _several(parents: Iterable[str]) -> list[str]:
    """Return the parents of a test that is a task of its own: for Cosmos, one of several nodes."""
    found = list(parents)
    return found if len(found) > 1 else found * 2


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text))


def _as_text(value: Any) -> str:
    """Return a date or time as dbt writes it to `manifest.json`; anything else as Python prints it."""
    return str(value.isoformat() if hasattr(value, "isoformat") else value)
