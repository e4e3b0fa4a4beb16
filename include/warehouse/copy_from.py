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
        copy_all(connection, other, "other", this, with_views=this.has_duckdb_views)
        connection.commit()
    return f"Copied {release.id} from {other.published_location()}. Start a run to load what is new and publish it."


def copy_all(
    connection: duckdb.DuckDBPyConnection, source: Target, catalog: str, to: Target, *, with_views: bool = True
) -> None:
    """Copy an attached warehouse into the default catalog: its tables, and its views if they are DuckDB's.

    Args:
        connection: where both are.
        source: the target of the attached one.
        catalog: its name there.
        to: the target of the default catalog; columns get the type in which it keeps their values.
        with_views: False where DuckDB's views cannot be; the next run builds them.

    Raises:
        WarehouseError: a value fits no type of the target.
        duckdb.Error: it cannot be read or written.
    """
    tables = [one for one, kind in source.relations(connection, catalog).items() if kind == "table"]
    selected = {one: _selected(connection, to, identifier(catalog, *one)) for one in tables}
    if with_views and source.has_duckdb_views and not any(selected.values()):
        connection.execute(f"copy from database {identifier(catalog)} to {identifier(warehouse_name())}")
        return
    for (schema, table), columns in selected.items():
        connection.execute(f"create schema if not exists {identifier(warehouse_name(), schema)}")
        copy = identifier(warehouse_name(), schema, table)
        try:
            connection.execute(
                f"create table {copy} as select {columns or '*'} from {identifier(catalog, schema, table)}"
            )
        except duckdb.ConversionException:  # without its text, which has the value
            raise WarehouseError(
                f"Nothing was copied: {schema}.{table} has a value that this engine has no type for (an integer of 39"
                " digits). Change it in the model."
            ) from None


def _selected(connection: duckdb.DuckDBPyConnection, to: Target, table: str) -> str:
    """Return the columns of a table, converted where the target would not keep each value; empty if it keeps all."""
    columns = [(row[0], row[1]) for row in connection.execute(f"describe {table}").fetchall()]
    if all(to.kept_type(type_) == type_ for _, type_ in columns):
        return ""
    return ", ".join(
        f"cast({identifier(name)} as {to.kept_type(type_)}) as {identifier(name)}" for name, type_ in columns
    )
