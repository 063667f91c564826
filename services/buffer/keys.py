"""The one Redis key Python names; `lua/common.lua` makes all others from it."""


def meta_key(run_id: str) -> str:
    """`dapod:{<run id>}:meta`. The braces keep all keys of a run in one cluster slot."""
    return f"dapod:{{{run_id}}}:meta"
