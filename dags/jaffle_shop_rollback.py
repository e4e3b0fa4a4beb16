"""Bring an older published snapshot back to the readers, in Airflow."""

from elt import PROJECT_NAME, rollback_dag

dag = rollback_dag(PROJECT_NAME)
