"""Airflow imports this module in each of its processes, as soon as its settings are read.

An Airflow process makes millions of objects as it starts, and keeps them. With its default thresholds, Python's garbage
collector takes a third of the start to look through them again and again.
"""

import gc

from patches import sqlite_savepoint

__all__: list[str] = []  # Airflow takes over what is named here

gc.set_threshold(50_000, 20, 100)
sqlite_savepoint.apply()
