"""Give one dbt command after another, in one process, the project that the first one parsed, and its graph.

What: dbt's `ManifestLoader.get_full_manifest` keeps what it returned, puts it back into its state before it was used,
    and returns it again for the same project, profile, target, variables and environment, with the project files of
    its packages. `Compiler.compile` keeps the graph that it made of it, and does not write it to files that nobody
    reads. A selection by name looks at the nodes
    that have it, and a model's graph, or its tests', is made at once, not by removing all others layer by layer.
Why: a small command spends a third of its time on finding out that nothing has changed, and more with more models.
    `dbtRunner(manifest=...)` leaves what a command did to the manifest in it: a model compiled twice has wrong SQL.
Reported: no.
Since: dbt-core 1.11.
Remove once `dbtRunner` can be given a manifest again and again.
"""

import copy
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dbt.compilation
import dbt.parser.manifest
from dbt.adapters.factory import get_adapter
from dbt.compilation import Compiler
from dbt.context.query_header import generate_query_header_context
from dbt.contracts.graph.manifest import Manifest
from dbt.graph.graph import Graph
from dbt.graph.selector_methods import QualifiedNameSelectorMethod

from include.patches import fits

logger = logging.getLogger(__name__)

_kept: "_Kept | None" = None


def apply() -> None:
    """Change dbt in this process. Whoever calls it ends the process when a file of the project has changed."""
    base: Any = dbt.parser.manifest.ManifestLoader

    class Loader(base):  # type: ignore[misc]
        @classmethod
        def get_full_manifest(cls, config: Any, **options: Any) -> Manifest:
            global _kept
            key = _key(config)
            if _kept is None or _kept.key != key:
                _kept = _Kept(key, super().get_full_manifest(config, **options), config.load_dependencies())
                return _kept.manifest
            logger.info("dbt reuses the project parsed in memory")
            config.dependencies = {**_kept.packages, config.project_name: config}
            manifest, adapter = _kept.restored(), get_adapter(config)
            adapter.set_macro_resolver(manifest)
            adapter.connections.set_query_header(generate_query_header_context(config, manifest))
            return manifest

    dbt.parser.manifest.ManifestLoader = Loader  # type: ignore[misc]
    if fits(Compiler.compile, "self", "manifest", "write", "add_test_edges"):
        Compiler.compile = _compile(Compiler.compile)  # type: ignore[method-assign]
    if fits(QualifiedNameSelectorMethod.search, "self", "included_nodes", "selector"):
        QualifiedNameSelectorMethod.search = _search(QualifiedNameSelectorMethod.search)  # type: ignore[method-assign]


def _compile(original: Any) -> Any:
    def compile(self: Compiler, manifest: Manifest, write: bool = True, add_test_edges: bool = False) -> Graph:
        if _kept is None or manifest is not _kept.manifest or add_test_edges:
            return original(self, manifest, write, add_test_edges)  # type: ignore[no-any-return]
        if _kept.graph is None:
            _kept.graph = _Graph(original(self, manifest, write).graph)
            _kept.stats = dbt.compilation._generate_stats(manifest)
        else:
            self.initialize()  # type: ignore[no-untyped-call]
            dbt.compilation.print_compile_stats(_kept.stats)
        return _kept.graph

    return compile


def _search(original: Any) -> Any:
    def search(self: QualifiedNameSelectorMethod, included_nodes: set[Any], selector: str) -> Iterator[Any]:
        if _kept is not None and self.manifest is _kept.manifest and not set("*?[]") & set(selector):
            included_nodes = included_nodes & _kept.named(selector)
        return original(self, included_nodes, selector)  # type: ignore[no-any-return]

    return search


class _Graph(Graph):
    def get_subset_graph(self, selected: Any) -> Graph:
        chosen = set(selected)
        known = all(node in self.graph for node in chosen)
        if not known or (len(chosen) > 1 and any(self.graph.out_degree(node) for node in chosen)):
            return super().get_subset_graph(chosen)
        apart = type(self.graph)()
        apart.add_nodes_from(chosen)
        return Graph(apart)


def _key(config: Any) -> object:
    project_file = Path(config.project_root, "dbt_project.yml").resolve()  # Cosmos symlinks it into a temporary folder
    variables = (config.cli_vars, config.project_env_vars, config.profile_env_vars)
    connection = list(config.credentials.connection_info())
    return copy.deepcopy((project_file, config.profile_name, config.target_name, variables, connection))


class _Kept:
    """A parsed project, its graph, and what its nodes were before they were compiled and run."""

    def __init__(self, key: object, manifest: Manifest, packages: Mapping[str, Any]) -> None:
        self.key, self.manifest, self.packages = key, manifest, packages
        self.graph: Graph | None = None
        self.stats: dict[Any, int] = {}
        self._named: dict[str, set[str]] = {}
        self._before = {
            id_: (node, dict(vars(node)), list(node.depends_on.macros) if hasattr(node, "depends_on") else [])
            for id_, node in manifest.nodes.items()
        }

    def named(self, selector: str) -> set[str]:
        """Return the nodes that an fqn without wildcards may select, with some that it does not."""
        if not self._named:
            self._named = defaultdict(set)
            manifest = self.manifest
            for group in (manifest.nodes, manifest.exposures, manifest.metrics, manifest.semantic_models,
                          manifest.unit_tests, manifest.saved_queries, manifest.functions):  # fmt: skip
                for id_, node in group.items():
                    for name in [*".".join(node.fqn).split("."), *([""] if node.is_versioned else [])]:
                        self._named[name].add(id_)
        # A model's version can be written in two ways.
        return self._named.get(selector.rpartition(".")[2], set()) | self._named.get("", set())

    def restored(self) -> Manifest:
        # A command gives a node its SQL, its files, and the macros found while it ran.
        nodes = self.manifest.nodes
        nodes.clear()
        for id_, (node, fields, macros) in self._before.items():
            nodes[id_] = node
            if getattr(node, "compiled", True):
                vars(node).clear()
                vars(node).update(fields)
                if hasattr(node, "depends_on"):
                    node.depends_on.macros = list(macros)
        return self.manifest
