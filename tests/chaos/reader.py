"""Read the published database in a loop until a file appears; print how many reads succeeded and failed.

A read is inconsistent if the tables of one release contradict each other, as a mix of two runs would.
"""

import json
import sys
import time
from pathlib import Path

import duckdb

from include.warehouse.errors import WarehouseError
from include.warehouse.targets import target

INVARIANT = """
    select
        (select count(*) from marts.orders) = (select count(*) from jaffle_shop_raw.raw_orders)
        and (select count(*) from marts.customers) = (select count(*) from jaffle_shop_raw.raw_customers)
        and (select coalesce(sum(amount), 0) from marts.orders)
            = (select coalesce(sum(customer_lifetime_value), 0) from marts.customers)
        and (select sum(amount) from jaffle_shop_raw.raw_payments) = (select sum(amount) * 100 from marts.orders)
        and (select count(distinct _dlt_load_id) from
            (select _dlt_load_id from jaffle_shop_raw.raw_orders union all
             select _dlt_load_id from jaffle_shop_raw.raw_payments union all
             select _dlt_load_id from jaffle_shop_raw.raw_customers)) = 1
"""

# A lake's reader needs the servers that the faults kill.
AWAY = (
    "Connection refused",
    "server closed the connection",
    "terminated abnormally",
    "starting up",
    "not yet accepting connections",
    "Could not connect",
)


def main() -> None:
    stop, counts, errors = Path(sys.argv[1]), {"right": 0, "inconsistent": 0, "error": 0, "away": 0}, []
    while not target().published_version():
        time.sleep(0.1)
    while not stop.exists():
        try:
            with target().open_release() as connection:
                row = connection.execute(INVARIANT).fetchone()
            counts["right" if row and row[0] else "inconsistent"] += 1
        except (duckdb.Error, OSError, WarehouseError) as error:
            away = any(sign in str(error) for sign in AWAY)
            counts["away" if away else "error"] += 1
            if not away:
                errors.append(str(error)[:300])
        time.sleep(0.02)
    print(json.dumps({**counts, "errors": errors[:5]}))


if __name__ == "__main__":
    main()
