"""A second pipeline in the same Airflow, with a warehouse of its own."""

from elt import elt_dag, load, publish, source_freshness, transform

SOURCES = ("jaffle_shop",)

with elt_dag("second", schedule=None, description="The same again", pool="default_pool") as dag:
    models = transform()
    load(SOURCES) >> source_freshness(SOURCES) >> models >> publish(models)
