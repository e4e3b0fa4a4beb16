"""Import what tasks on the chosen target need, so that forked task processes have it; connects to nothing.

Airflow's `mp_forkserver_preload` names this module, as it does `warm_dbt`. What is missing or misspelt, tasks report.
"""

import os
from contextlib import suppress
from importlib import import_module

from include import provenance
from include.warehouse.errors import WarehouseError
from include.warehouse.targets import target

provenance.package_versions()
with suppress(ImportError, WarehouseError):
    target()
    if "://" in os.environ.get("WAREHOUSE_ARTIFACTS", ""):
        for name in ("upath", "s3fs"):
            import_module(name)
