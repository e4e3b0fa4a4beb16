"""Plain Python that the DAGs call; nothing in here imports Airflow."""
