"""Let a forked process use the project that its parent has parsed.

What: dbt's `ManifestLoader` takes a manifest from memory instead of `partial_parse.msgpack`. As with that file, dbt
    compares it with the current profile, target, variables, environment, packages and file contents, and re-parses
    what differs. `write_manifest` writes the JSON text that is kept in memory if there was nothing to parse.
Why: reading the parsed project and writing `manifest.json`, twice a command, take half of a small command's time.
    `dbtRunner(manifest=...)` is no help: it checks nothing, and Cosmos makes the runner.
Reported: https://github.com/dbt-labs/dbt-core/issues/10460, for a flag against writing the manifest (closed as stale).
Since: dbt-core 1.11.
Remove once dbt checks a manifest that `dbtRunner` is given for changes since, and can do without `manifest.json`.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

import dbt.parser.manifest
import dbt.task.runnable
from dbt.constants import MANIFEST_FILE_NAME
from dbt.contracts.graph.manifest import Manifest
from dbt.flags import get_flags
from dbt.parser.manifest import ManifestLoader, write_manifest
from dbt_common.invocation import get_invocation_id

from include.patches import fits

logger = logging.getLogger(__name__)

_project_dir = Path()
_offered: Manifest | None = None  # until dbt takes it and modifies it
_unchanged: Manifest | None = None  # the manifest that `_manifest_json` was written from
_manifest_json = b""


def apply() -> None:
    """Change dbt in this process; without `offer`, nothing is different."""
    if (
        fits(ManifestLoader.read_manifest_for_partial_parse, "self")
        and fits(ManifestLoader.write_manifest_for_partial_parse, "self")
        and fits(ManifestLoader.is_partial_parsable, "self", "manifest")
    ):
        dbt.parser.manifest.ManifestLoader = _Loader  # type: ignore[misc]
    if fits(write_manifest, "manifest", "target_path", "which"):
        dbt.parser.manifest.write_manifest = _write_manifest
        dbt.task.runnable.write_manifest = _write_manifest  # type: ignore[attr-defined]


def offer(project_dir: Path, manifest: Manifest, manifest_json: bytes) -> None:
    """Offer a parsed project to this process's next dbt command, and to that of each fork.

    Args:
        project_dir: the project's folder; other projects don't get the manifest.
        manifest: as `dbt parse` returned it.
        manifest_json: what `dbt parse` wrote for it.
    """
    global _project_dir, _offered, _unchanged, _manifest_json
    _project_dir, _offered, _unchanged, _manifest_json = project_dir, manifest, manifest, manifest_json


class _Loader(ManifestLoader):
    def read_manifest_for_partial_parse(self) -> Manifest | None:
        global _offered
        # Cosmos symlinks it into a temporary folder.
        project_file = Path(self.root_project.project_root, "dbt_project.yml").resolve()
        if (
            (manifest := _offered)
            and get_flags().PARTIAL_PARSE  # type: ignore[no-untyped-call]
            and project_file == _project_dir / project_file.name
            and self.is_partial_parsable(manifest)[0]
        ):
            _offered = None
            manifest.metadata.generated_at = datetime.now(UTC).replace(tzinfo=None)
            manifest.metadata.invocation_id = get_invocation_id()
            logger.info("dbt reuses the project parsed in memory and checks for changes since")
            return manifest
        return super().read_manifest_for_partial_parse()

    def write_manifest_for_partial_parse(self) -> None:
        """Called by dbt after parsing anything: the cached manifest is stale."""
        global _unchanged
        _unchanged = None
        super().write_manifest_for_partial_parse()  # type: ignore[no-untyped-call]


def _write_manifest(manifest: Manifest, target_path: str, which: str | None = None) -> None:
    if manifest is _unchanged:
        file = Path(target_path, MANIFEST_FILE_NAME)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_manifest_json)
    else:
        write_manifest(manifest, target_path, which)
