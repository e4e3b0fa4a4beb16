"""Another team's DAG, scheduled on a published mart."""

from airflow.sdk import DAG, Asset, task

from include.settings import warehouse_name

with DAG(dag_id="on_orders", schedule=[Asset(f"{warehouse_name()}.marts.orders")]):

    @task
    def read() -> None:
        """Stand for what they do with it."""

    read()
