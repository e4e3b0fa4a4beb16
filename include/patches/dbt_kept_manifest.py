"""Give one dbt command after another, in one process, the project that the first one parsed.

What: dbt's `ManifestLoader.get_full_manifest` keeps what it returned, puts it back into its state before it was used,
    and returns it again for the same project, profile, target, variables and environment.
Why: a small command spends a third of its time on finding out that nothing has changed, and more with more models.
    `dbtRunner(manifest=...)` leaves what a command did to the manifest in it: a model compiled twice has wrong SQL.
Reported: no.
Since: dbt-core 1.11.
Remove once `dbtRunner` can be given a manifest again and again.
"""

import copy
import logging
from pathlib import Path
from typing import Any

import dbt.parser.manifest
from dbt.adapters.factory import get_adapter
from dbt.context.query_header import generate_query_header_context
from dbt.contracts.graph.manifest import Manifest

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
                _kept = _Kept(key, super().get_full_manifest(config, **options))
                return _kept.manifest
            logger.info("dbt reuses the project parsed in memory")
            manifest, adapter = _kept.restored(), get_adapter(config)
            adapter.set_macro_resolver(manifest)
            adapter.connections.set_query_header(generate_query_header_context(config, manifest))
            return manifest

    dbt.parser.manifest.ManifestLoader = Loader  # type: ignore[misc]


def _key(config: Any) -> object:
    project_file = Path(config.project_root, "dbt_project.yml").resolve()  # Cosmos symlinks it into a temporary folder
    variables = (config.cli_vars, config.project_env_vars, config.profile_env_vars)
    connection = list(config.credentials.connection_info())
    return copy.deepcopy((project_file, config.profile_name, config.target_name, variables, connection))


class _Kept:
    """A parsed project, and what its nodes were before they were compiled and run."""

    def __init__(self, key: object, manifest: Manifest) -> None:
        self.key, self.manifest = key, manifest
        self._before = {
            id_: (node, dict(vars(node)), list(node.depends_on.macros) if hasattr(node, "depends_on") else [])
            for id_, node in manifest.nodes.items()
        }

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
