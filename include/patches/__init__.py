"""Changes to private parts of dbt and dlt, one file each; those of Airflow and Cosmos are in plugins/patches.

Each file says what it changes, why, where that was reported, since which version, and when it can go. Each has a test
in tests/patches that fails once the change is not needed any more, or does not fit any more.
"""
