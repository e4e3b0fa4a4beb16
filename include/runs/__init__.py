"""Run artifacts and publish checks: load summaries, dbt results, the build graph, alerts.

python -m include.runs publish RUN_ID | serve | failures
"""
