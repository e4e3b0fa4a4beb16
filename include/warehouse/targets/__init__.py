"""The engines that a warehouse can be on, a class for each: `DBT_TARGET` chooses one.

A further one takes a module with a subclass of `base.Target`, a line below, a profile of the same name in
`include/dbt_project/profiles.yml`, and a lock file if it needs packages of its own.
"""

from functools import cache
from importlib import import_module

from include.settings import dbt_target
from include.warehouse.errors import WarehouseError
from include.warehouse.targets.base import Target
from include.warehouse.targets.database_file import encryption_key

# Module and class of each. A module is imported when it is used: it may need packages that are not installed, and it
# may be deleted.
TARGETS = {
    "duckdb": ("duckdb_file", "DuckDBFile"),
    "encrypted": ("duckdb_file", "EncryptedFile"),
    "ducklake": ("ducklake", "DuckLake"),
    "postgres": ("postgres", "Postgres"),
    "bigquery": ("bigquery", "BigQuery"),
    "snowflake": ("snowflake", "Snowflake"),
}


def target() -> Target:
    """Return the target that `DBT_TARGET` names, by default the DuckDB file.

    Raises:
        WarehouseError: there is no such target, or it needs a package that is missing, or does not encrypt its files;
            or the encryption key is not valid.
    """
    found = named(dbt_target())
    if encryption_key() and not found.encrypts:
        raise WarehouseError(
            f"DBT_TARGET={found.name} does not encrypt its files: unset WAREHOUSE_ENCRYPTION_KEY, or set "
            "DBT_TARGET=encrypted."
        )
    return found


@cache
def named(name: str) -> Target:
    """Return a target by its name, the same object each time.

    Raises:
        WarehouseError: as `target`.
    """
    if name not in TARGETS:
        raise WarehouseError(f"DBT_TARGET must be one of {', '.join(TARGETS)}, not {name!r}.")
    module, class_name = f"{__package__}.{TARGETS[name][0]}", TARGETS[name][1]
    try:
        found: type[Target] = getattr(import_module(module), class_name)
    except ImportError as error:
        if (error.name or "").startswith(f"{__package__}."):
            missing = f"{str(error.name).replace('.', '/')}.py"
            raise WarehouseError(
                f"DBT_TARGET={name} needs {missing}, which has been deleted from this project."
            ) from None
        raise WarehouseError(f"DBT_TARGET={name} needs packages of its own: make setup-{name} ({error})") from error
    return found(name)
