"""What a change does to the data, before or after readers see it: previews, and the difference of two releases.

python -m include.change preview | previews | diff [A [B]] | sample FILE | rollback ID | approve ID NOTE | ...
"""
