"""Changes to Airflow and Cosmos that nothing official makes; the rules are in include/patches."""
