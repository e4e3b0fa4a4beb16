"""Make the jaffle shop's CSV files: small by default, any size on request, the same bytes for the same seed.

python -m include.generate_data --orders 5000000 --customers 1000000 --payments 6000000 --out /tmp/big
"""

import argparse
import csv
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from random import Random

FIRST_DAY = date(2025, 1, 1)
DAYS = 365
STATUSES = ("completed",) * 12 + ("shipped", "shipped", "placed", "placed", "returned", "return_pending")
METHODS = ("credit_card",) * 5 + ("bank_transfer",) * 3 + ("coupon", "gift_card")
FIRST_NAMES = (
    "Amélie", "Björn", "Chloé", "Dolores", "Émile", "Fatima", "Grace", "Hiroko", "Ines", "José", "Kathleen", "Łukasz",
    "Michael", "Noor", "Oluwaseun", "Priya", "Quentin", "Renée", "Siobhán", "Þóra", "Uwe", "Víctor", "Wei", "Ximena",
    "Yusuf", "Zoë", "小雨", "Ольга", 'Robert "Bob"', "Mary Ann",
)  # fmt: skip
LAST_NAMES = (
    "O'Brien",
    "Smith, Jr.",
    "Müller",
    "Nguyễn",
    "García",
    "d'Arc",
    "Østergård",
    "Kowalska",
    "P.",
    "李",
    "Иванова",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the three files, each complete under its name or not at all; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--customers", type=int, default=100)
    parser.add_argument("--orders", type=int, default=99)
    parser.add_argument("--payments", type=int, default=113)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "data")
    options = parser.parse_args(arguments)
    if min(options.customers, options.orders, options.payments) < 1:
        parser.error("customers, orders and payments must each be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    tables = {
        "raw_customers": (("id", "first_name", "last_name"), customers(options.customers, options.seed)),
        "raw_orders": (
            ("id", "user_id", "order_date", "status"),
            orders(options.orders, options.customers, options.seed),
        ),
        "raw_payments": (
            ("id", "order_id", "payment_method", "amount"),
            payments(options.payments, options.orders, options.seed),
        ),
    }
    for name, (header, rows) in tables.items():
        _write(options.out / f"{name}.csv", header, rows)
    return 0


def customers(count: int, seed: int) -> Iterator[tuple[object, ...]]:
    """Yield customers with ids from 1."""
    random = Random(f"{seed} customers")  # noqa: S311
    for number in range(1, count + 1):
        yield number, random.choice(FIRST_NAMES), random.choice(LAST_NAMES)


def orders(count: int, customers: int, seed: int) -> Iterator[tuple[object, ...]]:
    """Yield orders in the order of their days; about a third of the customers have none."""
    random = Random(f"{seed} orders")  # noqa: S311
    for number in range(1, count + 1):
        day = FIRST_DAY + timedelta(days=(number - 1) * DAYS // count)
        customer = 1 + int(customers * random.random() ** 1.5)
        yield number, customer, day.isoformat(), random.choice(STATUSES)


def payments(count: int, orders: int, seed: int) -> Iterator[tuple[object, ...]]:
    """Yield payments in cents: one for most orders, several for some, none for one in fifty, now and then of 0."""
    random = Random(f"{seed} payments")  # noqa: S311
    paid = (order for order in range(1, orders + 1) if order % 50)
    unpaid_or_done = itertools.chain(paid, iter(lambda: _any_paid(random, orders), None))
    for number, order in zip(range(1, count + 1), unpaid_or_done, strict=False):
        amount = 0 if number % 40 == 0 else 100 * random.randrange(1, 31)
        yield number, order, random.choice(METHODS), amount


def _any_paid(random: Random, orders: int) -> int:
    order = random.randrange(1, orders + 1)
    return order if order % 50 else order - 1


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write to another name and rename, so that a load that runs meanwhile never reads half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
