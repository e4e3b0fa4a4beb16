"""What runs leave behind and are judged by: summaries, dbt's results, the build graph that publish checks, alerts.

python -m include.runs publish RUN_ID | failures
"""
