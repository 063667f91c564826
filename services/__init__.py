"""The four services; each starts with `python -m services.<name>` and imports no other."""
