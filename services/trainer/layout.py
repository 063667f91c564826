"""How the base model lies on disk, so that every published policy lies the same way.

The published files hold exactly the base model's tensors under its names: vLLM only warns about
missing ones, and a tied head is stored when, and only when, the base stores it. Everything that
describes the model (config, tokenizer, chat template) is copied as it is; only the data type in
config.json becomes bfloat16.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from dapod.model_files import read_json
from dapod.policy_store import read_tensor_entries

_DESCRIPTIONS = {".json", ".jinja", ".txt", ".model"}
_TYPE_KEYS = ("dtype", "torch_dtype")


@dataclass(frozen=True, kw_only=True)
class ModelLayout:
    """The base model's files."""

    directory: Path
    shards: dict[str, tuple[str, ...]]
    """Safetensors file -> names of its tensors, in the file's order."""

    @classmethod
    def of(cls, directory: Path) -> ModelLayout:
        """Reads the headers only."""
        files = sorted(directory.glob("*.safetensors"))
        shards = {f.name: tuple(entry.name for entry in read_tensor_entries(f)) for f in files}
        return cls(directory=directory, shards=shards)

    @property
    def tensor_names(self) -> set[str]:
        return {name for names in self.shards.values() for name in names}

    def copy_descriptions(self, target: Path) -> None:
        """Everything but the tensors."""
        for file in sorted(self.directory.iterdir()):
            if file.is_file() and file.suffix in _DESCRIPTIONS:
                shutil.copyfile(file, target / file.name)
        config = read_json(target / "config.json")
        typed = {key: "bfloat16" for key in _TYPE_KEYS if config.get(key) not in (None, "bfloat16")}
        if typed:
            (target / "config.json").write_text(json.dumps(config | typed, indent=2) + "\n")
