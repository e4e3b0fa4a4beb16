"""The warehouse: what is being built, what is published, the build graph between them.

    from include.warehouse.targets import target    # the engine that DBT_TARGET names
    target().publish(...)

python -m include.warehouse show | releases | rollback ID | restore [ID] | copy-from TARGET
"""
