"""Roll readers back to an older release, in Airflow."""

from elt import PROJECT_NAME, rollback_dag

dag = rollback_dag(PROJECT_NAME)
