"""The warehouse's files: where they are, opening the working database, publish, snapshots, rollback.

python -m include.warehouse show | snapshots | publish RUN_ID | rollback ID
"""

from include.warehouse.connection import open_read_only, open_working
from include.warehouse.errors import (
    PublishError,
    UnknownSnapshotError,
    WarehouseCorruptError,
    WarehouseError,
    WarehouseLockedError,
)
from include.warehouse.paths import artifacts_dir, published_path, snapshots_dir, warehouse_dir, working_path
from include.warehouse.snapshots import (
    Snapshot,
    list_snapshots,
    publish,
    published_snapshot,
    rollback,
    snapshot_id,
)

__all__ = [
    "PublishError",
    "Snapshot",
    "UnknownSnapshotError",
    "WarehouseCorruptError",
    "WarehouseError",
    "WarehouseLockedError",
    "artifacts_dir",
    "list_snapshots",
    "open_read_only",
    "open_working",
    "publish",
    "published_path",
    "published_snapshot",
    "rollback",
    "snapshot_id",
    "snapshots_dir",
    "warehouse_dir",
    "working_path",
]
