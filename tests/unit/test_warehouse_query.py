"""The query sandbox: what queries can and cannot do."""

import csv
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psutil
import pytest

from include.settings import warehouse_name
from include.warehouse import paths
from include.warehouse.targets import target
from include.warehouse_catalog import query
from testing.project import unchecked

pytestmark = pytest.mark.unit

HANGS = 300.0  # seconds: no test is about how fast the machine is


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_START_SECONDS", HANGS)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("warehouse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAREHOUSE_DIR", str(folder))
        with target().open_working() as connection:
            connection.execute(
                "create schema marts; create table marts.orders as select range as id, null as gap from range(5000)"
            )
        target().publish("run", unchecked)
        yield folder


def refusal(sql: str, seconds: float = HANGS) -> str:
    with pytest.raises(query.QueryError) as refused:
        query.run(sql, seconds=seconds)
    return str(refused.value)


@pytest.mark.parametrize(
    ("sql", "first"),
    [
        ("select 1 as a, 2 as a;", ("1", "2")),
        ("select 'it''s', null -- a comment", ("it's", None)),
        ("/* ; */ select count(*) from marts.orders", ("5000",)),
        ("from marts.orders order by id desc", ("4999", None)),
        ("with a as (select 1 as b) select * from a", ("1",)),
        ("select timestamptz '2026-01-01 00:00:00+00'", ("2026-01-01 00:00:00+00",)),
        ("describe marts.orders", ("id", "BIGINT", "YES", None, None, None)),
    ],
)
def test_one_select_is_answered(published: Path, sql: str, first: tuple[str | None, ...]) -> None:
    assert query.run(sql).rows[0] == first


def test_rows_are_limited_and_truncation_is_reported(published: Path) -> None:
    answer = query.run("from marts.orders", max_rows=10)
    assert len(answer.rows) == 10 and answer.truncated
    assert not query.run("from marts.orders limit 10", max_rows=10).truncated


def test_a_result_with_huge_values_is_truncated(published: Path) -> None:
    answer = query.run("select repeat('x', 1000000) from range(100)")
    assert answer.truncated and len(answer.rows) < 25


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')",
        "from '/etc/passwd'",
        "from read_text('/etc/passwd')",
        "from read_blob('/etc/*')",
        "from glob('/*')",
        "from sniff_csv('/etc/passwd')",
        "from parquet_metadata('/etc/passwd')",
        "from read_csv('https://example.com/a.csv')",
        "from duckdb_secrets()",
        "select getenv('HOME')",
        "from query('from read_text(''/etc/passwd'')')",
    ],
)
def test_nothing_outside_the_database_can_be_read(published: Path, sql: str) -> None:
    message = refusal(sql)
    assert any(sign in message for sign in ("disabled by configuration", "does not exist", "is not in the catalog"))


@pytest.mark.parametrize(
    "sql",
    [
        "attach '/tmp/other.duckdb'",
        "install httpfs",
        "load httpfs",
        "copy marts.orders to '/tmp/stolen.csv'",
        "export database '/tmp/stolen'",
        "set threads = 8",
        "set enable_external_access = true",
        "reset lock_configuration",
        "pragma memory_limit = '100GB'",
        "call pragma_version()",
        "use memory",
        "create table t as select 1",
        "create table memory.main.t as select 1",
        "drop table marts.orders",
        "delete from marts.orders",
        "checkpoint",
        "begin",
        "from query('copy (select 1) to ''/tmp/stolen''')",
        "explain analyze select 1",
        "prepare a as select 1",
        "select 1; select 2",
        "select 1; drop table marts.orders",
        "with a as (insert into marts.orders from marts.orders returning *) from a",
        "select 1) union all (select 2",
        "",
        ";",
        "-- nothing",
    ],
)
def test_only_a_single_select_is_allowed(published: Path, sql: str) -> None:
    message = refusal(sql)
    assert "SELECT" in message or "One statement" in message or "no statement" in message or "Parser Error" in message


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_in_the_csv_is_never_a_formula(published: Path, start: str) -> None:
    formula = f"{start}HYPERLINK(1)"
    answer = query.run(f"""select '{formula}' as "{formula}", 'a=1', null, '', ['{formula}']""")
    names, cells = csv.reader(io.StringIO("".join(query.csv_lines(answer)), newline=""))
    assert names[0] == "'" + formula
    assert cells == ["'" + formula, "a=1", "", "", answer.rows[0][4]]


def test_numbers_in_the_csv_stay_numbers(published: Path) -> None:
    kinds = ("tinyint", "smallint", "integer", "bigint", "hugeint", "bignum", "float", "double", "decimal(9, 2)")
    columns = ", ".join(f"cast(-1 as {kind})" for kind in kinds)
    cells = "".join(query.csv_lines(query.run(f"select {columns}, '-1', interval '-1 day'"))).splitlines()[1]
    assert cells == "-1,-1,-1,-1,-1,-1,-1.0,-1.0,-1.00,'-1,'-1 day"


def test_the_csv_has_every_row(published: Path) -> None:
    parts = list(query.csv_lines(query.run("select id from marts.orders order by id", max_rows=2500)))
    assert "".join(parts).split() == ["id", *(str(number) for number in range(2500))]
    assert len(parts) == 3


def test_a_result_as_parquet_keeps_types_values_and_columns_of_the_same_name(published: Path, tmp_path: Path) -> None:
    sql = """select 1::decimal(38, 2) as n, 'ü' as n, null::date as day, [1, 2] as list, {'a': 1} as struct,
        '\\xFF'::blob as data, timestamptz '2026-01-01 12:00:00+02' as at, 'b'::enum('a', 'b') as kind"""
    file = tmp_path / "query.parquet"
    file.write_bytes(query.parquet(query.run(sql)))
    want = duckdb.execute(sql).fetchall()
    assert duckdb.execute(f"from '{file}'").fetchall() == want
    types = {name: kind for name, kind, *_ in duckdb.execute(f"describe from '{file}'").fetchall()}
    assert types["n"] == "DECIMAL(38,2)" and types["n_1"] == "VARCHAR" and types["at"] == "TIMESTAMP WITH TIME ZONE"
    file.write_bytes(query.parquet(query.run("select id from marts.orders where false")))
    assert duckdb.execute(f"from '{file}'").fetchall() == []


def test_a_thousand_columns_of_one_name_get_names_of_their_own() -> None:
    names = query._distinct(["n", "N_1", *["n"] * 998])
    assert names[:4] == ["n", "N_1", "n_2", "n_3"] and len({one.lower() for one in names}) == 1000


def test_every_saved_query_has_a_title(published: Path) -> None:
    saved = query.saved()
    assert len(saved) == len(list(query.QUERIES.glob("*.sql")))
    assert all(one.title and not one.sql.startswith("--") for one in saved)


def test_an_error_is_duckdbs_own_message(published: Path) -> None:
    assert 'Referenced column "nope" not found' in refusal("select nope from marts.orders")


@pytest.mark.parametrize(
    "sql",
    [
        "with recursive r as (select 1 as i union all select i + 1 from r) select count(*) from r",
        "select count(*) from range(100000000000) a, range(100) b where a.range % 7 = b.range",
    ],
)
def test_an_endless_query_is_stopped(published: Path, sql: str) -> None:
    assert refusal(sql, seconds=0.5) == "Stopped after 0.5 s, the time limit for queries."


@pytest.mark.parametrize("sql", ["select array_agg(range) from range(300000000)", "select repeat('x', 4000000000)"])
def test_memory_is_limited(published: Path, sql: str) -> None:
    message = refusal(sql)
    assert "Out of Memory" in message or "memory" in message or "Invalid" in message


def test_memory_not_tracked_by_duckdb_is_limited_too(published: Path) -> None:
    # With DuckDB's limit alone this takes 2.4 GB.
    assert "memory" in refusal("select repeat('x', 400000000)")


def test_the_kernel_stops_a_query_before_the_server(published: Path) -> None:
    slow = "select count(*) from range(100000000000) a, range(100) b where a.range % 7 = b.range"
    thread = threading.Thread(target=lambda: refusal(slow))
    thread.start()
    worst = 1000
    deadline = time.monotonic() + HANGS
    while not (found := [one for one in psutil.Process().children() if oom_score_adjustment(one) == worst]):
        assert thread.is_alive() and time.monotonic() < deadline, "no query process says that it may be killed first"
        time.sleep(0.05)
    while found[0].rlimit(psutil.RLIMIT_DATA)[1] == psutil.RLIM_INFINITY:
        assert thread.is_alive() and time.monotonic() < deadline, "the query process has no limit"
        time.sleep(0.05)
    assert found[0].rlimit(psutil.RLIMIT_DATA) == (2 * query.memory_bytes(),) * 2
    found[0].kill()
    thread.join()


def oom_score_adjustment(process: psutil.Process) -> int:
    try:
        return int(Path(f"/proc/{process.pid}/oom_score_adj").read_text())
    except OSError:  # it has ended
        return 0


GROUP = 1536 * 2**20


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        # Inside a container: cgroup v2, v1 with the host's path, v1 with the container's path.
        ("0::/", {"memory.max": GROUP}, GROUP),
        ("4:memory:/docker/abc\n1:cpu:/docker/abc", {"memory/memory.limit_in_bytes": GROUP}, GROUP),
        ("4:memory:/\n0::/", {"memory/memory.limit_in_bytes": GROUP}, GROUP),
        # A service: its group and the parent groups.
        ("0::/a/b", {"a/b/memory.max": GROUP}, GROUP),
        ("0::/a/b", {"a/memory.max": GROUP, "a/b/memory.max": "max"}, GROUP),
        ("0::/a/b", {"a/memory.max": 2 * GROUP, "a/b/memory.max": GROUP}, GROUP),
        # No limit below the machine's: none in v2, none in v1, no cgroups at all.
        ("0::/", {"memory.max": "max"}, None),
        ("4:memory:/", {"memory/memory.limit_in_bytes": 2**63 - 4096}, None),
        ("0::/", {}, None),
        ("", {}, None),
    ],
)
def test_the_limit_respects_the_container(
    tmp_path: Path, groups: str, files: dict[str, object], expected: int | None
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, value in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    assert query._available_bytes(tmp_path) == (expected or psutil.virtual_memory().total)


def test_concurrent_queries_leave_a_third_of_the_memory_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_available_bytes", lambda: GROUP)
    assert query.memory_bytes() * 2 * query.AT_ONCE == GROUP * 2 / 3
    monkeypatch.setattr(query, "_available_bytes", lambda: 64 * GROUP)
    assert query.memory_bytes() == query.MAX_MEMORY_BYTES


def test_the_database_name_comes_with_the_request(published: Path) -> None:
    assert query.run("select current_database()").rows == ((warehouse_name(),),)
    assert warehouse_name() not in Path(query.__file__).with_name("query_process.py").read_text()


def test_the_process_has_no_environment_and_writes_no_files(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "abc")
    settings = query.run("select name, value from duckdb_settings()").rows
    assert "abc" not in str(settings)
    assert ("lock_configuration", "true") in settings
    assert ("enable_external_access", "false") in settings


def test_queries_beyond_the_limit_are_refused_as_busy(published: Path) -> None:
    slow = "select count(*) from range(100000000000) a, range(100) b where a.range % 7 = b.range"
    errors: list[str] = []
    threads = [threading.Thread(target=lambda: errors.append(refusal(slow))) for _ in range(query.AT_ONCE)]
    for thread in threads:
        thread.start()
    while query._slots._value:
        pass
    with pytest.raises(query.QueryBusyError):
        query.run("select 1")
    while any(thread.is_alive() for thread in threads):
        for process in psutil.Process().children():
            process.kill()
        time.sleep(0.05)
    assert len(errors) == query.AT_ONCE
    assert query.run("select 1").rows == (("1",),)


def test_a_query_keeps_no_handle_on_the_published_file(published: Path) -> None:
    query.run("from marts.orders")
    with duckdb.connect(str(paths.published_path()), read_only=True) as connection:
        assert connection.execute("select count(*) from marts.orders").fetchall() == [(5000,)]


def test_an_encrypted_database_can_be_queried_without_leaking_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.setenv("WAREHOUSE_ENCRYPTION_KEY", "it's-the-key")
    monkeypatch.setenv("DBT_TARGET", "encrypted")
    with target().open_working() as connection:
        connection.execute("create schema marts; create table marts.orders as select 7 as id")
    target().publish("run", unchecked)
    assert query.run("from marts.orders").rows == (("7",),)
    for table in ("duckdb_databases()", "duckdb_settings()", "duckdb_logs", "pragma_database_list()"):
        try:
            text = str(query.run(f"from {table}").rows)
        except query.QueryError as error:
            text = str(error)
        assert "the-key" not in text, table


def test_querying_before_the_first_publish_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    assert refusal("select 1") == "Nothing is published yet."
