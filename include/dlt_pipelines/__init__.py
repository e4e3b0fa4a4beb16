"""Extract and load: plain dlt."""
