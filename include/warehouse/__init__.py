"""The warehouse files: paths, opening the working database, publish, published snapshots, rollback.

python -m include.warehouse show | snapshots | rollback ID | restore [ID]
"""

from include.settings import warehouse_name
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
from include.warehouse.ledger import (
    Node,
    check_current,
    check_not_older,
    drop_unknown,
    loads,
    record_load,
    recorded,
    revert_unpublished,
)
from include.warehouse.paths import (
    artifacts_dir,
    published_path,
    run_artifacts_dir,
    snapshot_id,
    snapshots_dir,
    use_warehouse,
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
    "DiskFullError",
    "Node",
    "NotReadyError",
    "PublishError",
    "Snapshot",
    "UnknownSnapshotError",
    "WarehouseCorruptError",
    "WarehouseError",
    "WarehouseLockedError",
    "artifacts_dir",
    "check_current",
    "check_not_older",
    "drop_unknown",
    "list_snapshots",
    "loads",
    "open_read_only",
    "open_working",
    "publish",
    "published_path",
    "published_snapshot",
    "record_load",
    "recorded",
    "restore",
    "revert_unpublished",
    "rollback",
    "run_artifacts_dir",
    "size_text",
    "snapshot_id",
    "snapshots_dir",
    "use_warehouse",
    "warehouse_dir",
    "warehouse_name",
    "working_path",
]
