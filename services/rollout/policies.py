"""Reads policy versions: whole, unchanged and of the model's shape, or not at all.

Everything is checked on the files, before the engine is touched, because vLLM only warns about a
tensor that is missing. What passes is a `VerifiedPolicy`, the only thing an engine loads.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from dapod.model_files import read_json
from dapod.policy_store import PolicyCorrupt, PolicyMissing, PolicyStore, read_tensor_entries
from dapod.types import PolicyVersion

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class VerifiedPolicy:
    """A version whose files are as published and whose tensors are exactly the model's."""

    policy: PolicyVersion
    directory: Path


class PolicyReader:
    """Verifies versions of `store` against the shapes of the base model in `model`."""

    def __init__(self, store: PolicyStore, model: Path) -> None:
        self._store = store
        self._tied = bool(read_json(model / "config.json").get("tie_word_embeddings"))
        self._shapes = self._read_shapes(model)

    async def verify(self, policy: PolicyVersion) -> VerifiedPolicy:
        """In a thread. Raises `PolicyMissing`, `PolicyCorrupt` or `OSError`."""
        return await asyncio.to_thread(self._verify, policy)

    def _verify(self, policy: PolicyVersion) -> VerifiedPolicy:
        directory = self._store.verify(policy)
        try:
            found = self._read_shapes(directory)
        except FileNotFoundError as error:
            raise PolicyMissing(f"{policy} was pruned while it was read") from error
        self._compare(policy, found)
        return VerifiedPolicy(policy=policy, directory=directory)

    def _compare(self, policy: PolicyVersion, found: Shapes) -> None:
        for name in sorted(self._shapes.keys() | found.keys()):
            if name not in found:
                raise PolicyCorrupt(f"{policy}: tensor {name} of the model is missing")
            if name not in self._shapes:
                raise PolicyCorrupt(f"{policy}: the model has no tensor {name}")
            if found[name] != self._shapes[name]:
                raise PolicyCorrupt(
                    f"{policy}: tensor {name} is {found[name]}, the model's is {self._shapes[name]}"
                )

    def _read_shapes(self, directory: Path) -> Shapes:
        shapes = {
            entry.name: entry.shape
            for file in sorted(directory.glob("*.safetensors"))
            for entry in read_tensor_entries(file)
        }
        if self._tied:
            # The same tensor as the embeddings: some writers store it twice, most do not.
            shapes.pop("lm_head.weight", None)
        return shapes


def verify_fixed(directory: Path) -> VerifiedPolicy:
    """A directory as it is: a published policy by its manifest, any other model unverified.

    There is no shape to compare with; vLLM refuses to start with tensors missing, it only warns
    when weights are changed in place. Raises `PolicyMissing` or `PolicyCorrupt`.
    """
    store = PolicyStore(directory.parent)
    for policy in store.versions():
        if store.path(policy) == directory:
            return VerifiedPolicy(policy=policy, directory=store.verify(policy))
    return VerifiedPolicy(policy=PolicyVersion(number=0, lineage="base"), directory=directory)
