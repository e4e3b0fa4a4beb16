"""Generate the jaffle shop's three CSV files in any size: same arguments, same bytes, on every machine.

python -m include.generate_data [--customers 100 --orders 99 --payments 113 --seed 3 --out include/data]

Rows are generated one at a time, so memory use is constant. Only `Random.random()` and exact arithmetic are used: other
methods of `random` may differ between Python versions, and powers between machines.
"""

import argparse
import csv
import os
import tempfile
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from pathlib import Path
from random import Random

DATA_DIR = Path(__file__).resolve().parent / "data"
CUSTOMERS, ORDERS, PAYMENTS, SEED = 100, 99, 113, 3

_DAYS = [(date(2025, 1, 1) + timedelta(days=day)).isoformat() for day in range(365)]
# fmt: off
_FIRST_NAMES = (
    "Ada", "Aïcha", "Amélie", "Ana", "Björn", "Carlos", "Chloé", "D'Arcy", "Darius", "Edith", "Emil", "Fatima", "Félix",
    "Grace", "Hana", "Hugo", "Ines", "Ivan", "Jaqueline", "José", "Jun", "Kofi", "Leïla", "Li", "Luca", "Mary Ann",
    "Mary-Jane", "Mehmet", "Nadia", "Noah", "Olga", "Paweł", "Priya", 'Robert "Bob"', "Rosa", "Søren", "Tariq", "Uma",
    "Vera", "Wei", "Ximena", "Yusuf", "Zoë", "李",
)
_LAST_NAMES = (
    "Adeyemi", "Ahmed", "Baker", "Brown", "Carvalho", "Castillo", "de la Cruz", "Dubois", "Evans", "Fischer", "Fox",
    "García", "Gomez", "Haddad", "Hansen", "Ito", "Jensen", "Kaur", "Kowalski", "Kumar", "Larsen", "Lee", "Martínez",
    "Mbeki", "Müller", "Nguyễn", "Novák", "O'Brien", "O'Neil, Jr.", "Okafor", "Park", "Pérez", "Ramos", "Rossi",
    "Şahin", "Sato", "Silva", "Smith", "Tanaka", 'van "Vic" Vliet', "Weiß", "Wójcik", "Young", "王",
)
# fmt: on

Row = tuple[object, ...]


def customers(count: int, seed: int) -> Iterator[Row]:
    """Yield (id, first_name, last_name)."""
    draw = Random(f"{seed} customers").random  # noqa: S311
    for key in range(1, count + 1):
        yield key, _pick(_FIRST_NAMES, draw()), _pick(_LAST_NAMES, draw())


def orders(count: int, customers: int, seed: int) -> Iterator[Row]:
    """Yield (id, user_id, order_date, status) in date order; some customers order often, many never."""
    draw = Random(f"{seed} orders").random  # noqa: S311
    for key in range(1, count + 1):
        age, luck = 1 - key / count, draw()
        if luck < 0.08:
            status = "return_pending" if age < 0.2 else "returned"
        else:
            status = "placed" if age < 0.1 else "shipped" if age < 0.25 else "completed"
        yield key, 1 + int(customers * (draw() * draw())), _DAYS[(key - 1) * len(_DAYS) // count], status


def payments(count: int, orders: int, seed: int) -> Iterator[Row]:
    """Yield (id, order_id, payment_method, amount in cents); an order has none, one or several."""
    draw = Random(f"{seed} payments").random  # noqa: S311
    key = 0
    for order in range(1, orders + 1):
        # Spread the remaining payments over the remaining orders; the last order takes the rest.
        share, rest = divmod(count - key, orders + 1 - order)
        number = share + (draw() * (orders + 1 - order) < rest)
        luck = draw()
        if order == orders:
            number = count - key
        elif luck < 0.02:
            number = 0
        elif luck > 0.9:
            number = min(number + 1, count - key)
        for _ in range(number):
            key += 1
            method, amount = draw(), 100 * (1 + int(draw() * 30))
            if method < 0.5:
                yield key, order, "credit_card", amount
            elif method < 0.75:
                yield key, order, "bank_transfer", amount
            elif method < 0.88:
                yield key, order, "coupon", 0 if method < 0.77 else amount
            else:
                yield key, order, "gift_card", amount


def _pick(names: tuple[str, ...], draw: float) -> str:
    return names[int(len(names) * draw)]


def generate(
    out: Path,
    customer_count: int = CUSTOMERS,
    order_count: int = ORDERS,
    payment_count: int = PAYMENTS,
    seed: int = SEED,
) -> None:
    """Write the three files; existing ones are replaced once all are complete.

    Args:
        out: the folder, created if missing.
        customer_count: rows of `raw_customers.csv`.
        order_count: rows of `raw_orders.csv`.
        payment_count: rows of `raw_payments.csv`.
        seed: another seed gives other rows.

    Raises:
        ValueError: a count is negative, or there are orders without customers or payments without orders.
    """
    if min(customer_count, order_count, payment_count) < 0:
        raise ValueError("The number of rows cannot be negative.")
    if (order_count and not customer_count) or (payment_count and not order_count):
        raise ValueError("Orders need customers, and payments need orders.")
    files: dict[str, tuple[str, Iterable[Row]]] = {
        "raw_customers.csv": ("id,first_name,last_name", customers(customer_count, seed)),
        "raw_orders.csv": ("id,user_id,order_date,status", orders(order_count, customer_count, seed)),
        "raw_payments.csv": ("id,order_id,payment_method,amount", payments(payment_count, order_count, seed)),
    }
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".generating-") as folder:
        for name, (header, rows) in files.items():
            with (Path(folder) / name).open("w", encoding="utf-8", newline="") as file:
                file.write(header + "\n")
                csv.writer(file, lineterminator="\n").writerows(rows)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            (Path(folder) / name).replace(out / name)


def main() -> None:
    """Generate from the command line."""
    parser = argparse.ArgumentParser(description="Generate the jaffle shop's three CSV files.")
    parser.add_argument("--orders", type=int, default=ORDERS)
    parser.add_argument("--customers", type=int, help="default: in proportion to the orders")
    parser.add_argument("--payments", type=int, help="default: in proportion to the orders")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=DATA_DIR, help="folder of the files (default: include/data)")
    options = parser.parse_args()
    customers, payments = (
        -(-options.orders * count // ORDERS) if given is None else given
        for given, count in ((options.customers, CUSTOMERS), (options.payments, PAYMENTS))
    )
    try:
        generate(options.out, customers, options.orders, payments, options.seed)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
