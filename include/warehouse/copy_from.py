"""Move to another engine: fill an empty warehouse with what another target has published."""

import duckdb

from include.settings import warehouse_name
from include.sql import identifier
from include.warehouse.errors import WarehouseError
from include.warehouse.targets import named, target
from include.warehouse.targets.base import Target


def copy_from(name: str) -> str:
    """Fill this target's empty warehouse with what another one has published, in one transaction.

    The build graph comes along, so the copy can be loaded and built upon as it is.

    Args:
        name: the other target, as in `DBT_TARGET`.

    Returns:
        What was done, in one line.

    Raises:
        WarehouseError: it is this target, it has published nothing, or there are tables here already.
        WarehouseLockedError: somebody writes here.
        duckdb.Error: the other warehouse cannot be read.
    """
    other, this = named(name), target()
    if isinstance(other, type(this)) or isinstance(this, type(other)):  # the encrypted file is in the same place
        raise WarehouseError(f"{name} is where DBT_TARGET is already: nothing to copy.")
    release = other.published_release()
    if release is None:
        raise WarehouseError(f"Nothing is published as {other.published_location()}: nothing to copy.")
    with this.open_working() as connection:
        if tables := this.relations(connection):
            raise WarehouseError(
                f"This warehouse has {len(tables)} tables and views already; only an empty one can be filled."
            )
        for statement in other.attach_statements(name="other"):
            connection.execute(statement)
        connection.begin()
        copy_all(connection, other, "other", with_views=this.has_duckdb_views)
        connection.commit()
    return f"Copied {release.id} from {other.published_location()}. Start a run to load what is new and publish it."


def copy_all(connection: duckdb.DuckDBPyConnection, source: Target, catalog: str, *, with_views: bool = True) -> None:
    """Copy an attached warehouse into the default catalog: its tables, and its views if they are DuckDB's.

    Args:
        connection: where both are.
        source: the target of the attached one.
        catalog: its name there.
        with_views: False where DuckDB's views cannot be; the next run builds them.
    """
    if with_views and source.has_duckdb_views:
        connection.execute(f"copy from database {identifier(catalog)} to {identifier(warehouse_name())}")
        return
    for schema, table in (one for one, kind in source.relations(connection, catalog).items() if kind == "table"):
        connection.execute(f"create schema if not exists {identifier(warehouse_name(), schema)}")
        copy = identifier(warehouse_name(), schema, table)
        connection.execute(f"create table {copy} as from {identifier(catalog, schema, table)}")
