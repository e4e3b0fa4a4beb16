"""The marts in PostgreSQL."""

import logging
import re
from collections.abc import Sequence

import duckdb

from include.serving.base import LOCK_SECONDS, Server, Table, masked, own_words, selected
from include.sql import identifier, literal
from include.warehouse.errors import first_line

logger = logging.getLogger(__name__)

_NAME_BYTES = 63
_SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")


class Postgres(Server):
    """New tables are built beside the live ones, then the rows of these are changed to match, in one transaction.

    Not by renaming: a query finds its tables one after the other, so it could get one of the release before and one of
    the new release, with the rows of neither visible to it. Rows it sees as of one moment, in all tables. A changed row
    waits for no query either.
    """

    title, kind, extension = "PostgreSQL", "postgres", "postgres_scanner"
    # DuckDB's default, repeatable read, would see the tables as they were before it waited for the lock.
    options = ", isolation_level 'read committed'"

    def replace(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[Table]) -> None:
        """Replace all tables in one transaction; whoever could read the old ones can read the new ones."""
        live, old, new = (f"{self.schema}{end}" for end in ("", "_old", "_new"))
        connection.execute("begin")
        self._drop(connection, live, old)
        self.run(connection, f'drop schema if exists "{new}" cascade')
        self.run(connection, f'create schema if not exists "{live}"; create schema "{old}"')
        connection.execute(f"create schema server.{identifier(new)}")
        described = []
        for table in tables:
            columns = ", ".join(selected(name, type_, "struct map union") for name, type_ in table.columns)
            target = f"{identifier(new)}.{identifier(table.name)}"
            connection.execute(f"create table server.{target} as select {columns} from {table.source}")
            if table.key:
                self.run(connection, f"alter table {target} add primary key ({identifier(table.key)})")
            self.run(connection, f"analyze {target}")
            shown = f"{identifier(live)}.{identifier(table.name)}"
            described.append(f"comment on table {shown} is {literal(table.description)}")
            for name, _ in table.columns:
                text = literal(table.descriptions.get(name, ""))
                described.append(f"comment on column {shown}.{identifier(name)} is {text}")
            described.append(f"analyze {shown}")
        names = {"live": literal(live), "old": literal(old), "new": literal(new), "seconds": LOCK_SECONDS}
        self.run(connection, _SWITCH.format(**names))
        self.run(connection, "; ".join(described))
        connection.execute("commit")
        try:
            connection.execute("begin")
            self._drop(connection, live, old)
            connection.execute("commit")
        except duckdb.Error as error:  # tried again next time
            connection.execute("rollback")
            logger.warning("%s: the release before could not be removed yet: %s", self.place, first_line(error))

    def name_problem(self, name: str) -> str:
        """Return why PostgreSQL cannot have a name, or ""."""
        return "it is a system column of every table" if name in _SYSTEM_COLUMNS else ""

    def name_as_kept(self, name: str) -> str:
        """Return a name as PostgreSQL cuts it."""
        return name.encode()[:_NAME_BYTES].decode(errors="ignore")

    def value_problems(self, name: str, type_: str) -> list[tuple[str, str]]:
        """Return the conditions on values that PostgreSQL cannot hold: it has no NUL byte in text."""
        has_text = type_.startswith(("VARCHAR", "ENUM", "JSON"))
        nul = [(f"contains({identifier(name)}::varchar, chr(0))", "a NUL byte")] if has_text else []
        return super().value_problems(name, type_) + nul

    def describe(self, error: duckdb.Error) -> str:
        """Return PostgreSQL's message, and of its details only which objects depend on a table."""
        text = own_words(error, "ERROR: " if "ERROR: " in str(error) else '": ')
        main = re.split(" (?:DETAIL|CONTEXT|HINT|LINE)", text)[0]
        used = re.findall(r"((?:materialized )?view \S+) depends on", text)
        return masked(", ".join([main, *dict.fromkeys(used)]), r'(?:value|:) (?P<value>".*")')

    def _drop(self, connection: duckdb.DuckDBPyConnection, live: str, schema: str) -> None:
        """Drop a schema, and keep others from serving until this transaction ends."""
        self.run(connection, f"select pg_advisory_xact_lock(hashtext({literal(live)}))")
        # Not `cascade`: somebody's view on these tables is not ours to drop.
        self.run(connection, _DROP.format(schema=literal(schema), seconds=LOCK_SECONDS))


# A table whose columns or key have changed is replaced as a whole, and then waits for the queries that use it.
_SWITCH = """
do $$
declare
    one record;
    grants record;
    key text;
begin
    perform set_config('lock_timeout', '{seconds}s', true);
    for one in
        select relname from pg_class where relnamespace = to_regnamespace({live}) and relkind = 'r'
            and to_regclass(format('%I.%I', {new}, relname)) is null
    loop
        execute format('alter table %I.%I set schema %I', {live}, one.relname, {old});
    end loop;
    for one in
        select
            relname,
            array_agg((
                select coalesce(string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull), ', '
                    order by attnum), '') || coalesce((select pg_get_constraintdef(pg_constraint.oid)
                    from pg_constraint where conrelid = pg_class.oid and contype = 'p'), '')
                from pg_attribute where attrelid = pg_class.oid and attnum > 0 and not attisdropped
            ) order by relnamespace = to_regnamespace({new})) as definitions
        from pg_class where relnamespace in (to_regnamespace({live}), to_regnamespace({new})) and relkind = 'r'
        group by relname
    loop
        if one.definitions[1] = one.definitions[2] then
            select quote_ident(attname) into key from pg_index join pg_attribute on attrelid = indrelid
                and attnum = indkey[0]
                where indisprimary and indrelid = to_regclass(format('%I.%I', {live}, one.relname))
                    and not one.definitions[1] like '% json%'; -- has no equality
            if key is null then
                execute format('delete from %I.%I', {live}, one.relname);
                execute format('insert into %1$I.%3$I select * from %2$I.%3$I', {live}, {new}, one.relname);
            else
                execute format('delete from %1$I.%3$I was where not exists (select from %2$I.%3$I now
                    where now.%4$s = was.%4$s and now.* = was.*)', {live}, {new}, one.relname, key);
                execute format('insert into %1$I.%3$I select * from %2$I.%3$I now where not exists (
                    select from %1$I.%3$I was where was.%4$s = now.%4$s)', {live}, {new}, one.relname, key);
            end if;
            execute format('drop table %I.%I', {new}, one.relname);
            continue;
        end if;
        if array_length(one.definitions, 1) = 2 then
            for grants in
                select grantee::regrole::text as role, privilege_type as privilege from pg_class, aclexplode(relacl)
                where pg_class.oid = to_regclass(format('%I.%I', {live}, one.relname)) and grantee not in (0, relowner)
            loop
                execute format('grant %s on %I.%I to %s', grants.privilege, {new}, one.relname, grants.role);
            end loop;
            execute format('alter table %I.%I set schema %I', {live}, one.relname, {old});
        end if;
        execute format('alter table %I.%I set schema %I', {new}, one.relname, {live});
    end loop;
    execute format('drop schema %I', {new});
end $$
"""

_DROP = """
do $$
declare one record;
begin
    perform set_config('lock_timeout', '{seconds}s', true);
    for one in select relname from pg_class where relnamespace = to_regnamespace({schema}) and relkind = 'r' loop
        execute format('drop table %I.%I', {schema}, one.relname);
    end loop;
    execute format('drop schema if exists %I', {schema});
end $$
"""
