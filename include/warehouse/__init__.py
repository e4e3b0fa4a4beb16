"""The warehouse's files: where they are, opening the working database, publish, snapshots, rollback.

python -m include.warehouse show | snapshots | publish RUN_ID | rollback ID | failures | restore [ID]
"""

from include.warehouse.connection import open_read_only, open_working
from include.warehouse.errors import (
    DiskFullError,
    NotReadyError,
    PublishError,
    UnknownSnapshotError,
    WarehouseCorruptError,
    WarehouseError,
    WarehouseLockedError,
)
from include.warehouse.ledger import check_ready, loaded, record_load, record_nodes
from include.warehouse.paths import (
    DATABASE_NAME,
    artifacts_dir,
    published_path,
    run_artifacts_dir,
    snapshot_id,
    snapshots_dir,
    warehouse_dir,
    working_path,
)
from include.warehouse.snapshots import (
    Snapshot,
    list_snapshots,
    publish,
    published_snapshot,
    restore,
    rollback,
    size_text,
)

__all__ = [
    "DATABASE_NAME",
    "DiskFullError",
    "NotReadyError",
    "PublishError",
    "Snapshot",
    "UnknownSnapshotError",
    "WarehouseCorruptError",
    "WarehouseError",
    "WarehouseLockedError",
    "artifacts_dir",
    "check_ready",
    "list_snapshots",
    "loaded",
    "open_read_only",
    "open_working",
    "publish",
    "published_path",
    "published_snapshot",
    "record_load",
    "record_nodes",
    "restore",
    "rollback",
    "run_artifacts_dir",
    "size_text",
    "snapshot_id",
    "snapshots_dir",
    "warehouse_dir",
    "working_path",
]
