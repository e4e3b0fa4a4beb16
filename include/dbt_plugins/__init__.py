"""Plugins of dbt-duckdb, named in profiles.yml."""
