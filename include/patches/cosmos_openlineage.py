"""No OpenLineage in tasks if `OPENLINEAGE_DISABLED` is set.

What: the module that Cosmos would import fails to import, which Cosmos takes for "not installed".
Why: Cosmos has OpenLineage read the manifest and the results after each command, 0.3 s, also with
    `OPENLINEAGE_DISABLED` and `emit_datasets=False`.
Reported: https://github.com/astronomer/astronomer-cosmos/pull/622 (closed without a change).
Since: Cosmos 1.15, which requires openlineage-integration-common.
Remove once Cosmos heeds `OPENLINEAGE_DISABLED`, or does not require that package.
"""

import os
import sys

MODULE = "openlineage.common.provider.dbt.local"


def apply() -> None:
    """Change Cosmos in this process."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").lower() == "true":
        sys.modules[MODULE] = None  # type: ignore[assignment]
