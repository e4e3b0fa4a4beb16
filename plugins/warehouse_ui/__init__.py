"""The Warehouse section, pages and a JSON API behind the login; `include.warehouse_catalog` reads what they show."""
