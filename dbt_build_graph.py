"""Plugin that dbt finds by this file's name on Python's path: it lends include/dbt_warehouse its `graph.builds`."""

from dbt.contracts.graph.manifest import Manifest
from dbt.plugins.contracts import PluginArtifacts
from dbt.plugins.manager import dbt_hook, dbtPlugin


class BuildGraphPlugin(dbtPlugin):
    """Lends each command a recorder of its builds and tests."""

    @dbt_hook
    def get_manifest_artifacts(self, manifest: Manifest) -> PluginArtifacts:
        """Called after parsing, with the project as the command will run it."""
        from include.runs import recorder  # lazily: dbt imports this file for each command

        recorder.check_by_hand()
        recorder.create_warehouse()
        recorder.lend(manifest)
        return {}


plugins = [BuildGraphPlugin]
