"""Podman as these tests use it: its settings, Debian as a base image, and the images of this tree.

Only the mirrors of Debian and of Python's packages are needed, no registry: where CONTAINER_BASE
names no image, the base is made with debootstrap, of the Debian that the Dockerfiles name. Whoever
sets CONTAINERS_STORAGE_CONF decides where images are kept between runs; else they are under build/.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "podman"
SERVICES = ("buffer", "reward", "rollout", "trainer")
VERSION = "0.1.0"
BASE = "localhost/dapod-base:bookworm"
STAND_INS = "localhost/dapod-stand-ins:test"
BUILD_SECONDS = 1800.0

_TOOLS = ("podman", "debootstrap", "podman-compose")
_ENGINE = """
# Where no systemd runs: podman's defaults talk to it.
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
{runtime}
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
"""


def missing() -> str:
    """Why these tests cannot run here; empty when they can."""
    absent = [name for name in _TOOLS if program(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (docs/containers.md)"
    return "" if os.geteuid() == 0 else "debootstrap and podman's networks need root"


def program(name: str) -> str | None:
    """On PATH or beside this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


@functools.cache
def settings() -> Mapping[str, str]:
    """The environment of every podman command."""
    chosen = dict(os.environ)
    KEPT.mkdir(parents=True, exist_ok=True)
    if "CONTAINERS_STORAGE_CONF" not in chosen:
        file = KEPT / "storage.conf"
        file.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{KEPT}/graph"\nrunroot = "{KEPT}/run"\n'
        )
        chosen["CONTAINERS_STORAGE_CONF"] = str(file)
    if "CONTAINERS_CONF" not in chosen and not Path("/run/systemd/system").exists():
        file = KEPT / "containers.conf"
        file.write_text(_ENGINE.format(runtime='runtime = "runc"' if program("runc") else ""))
        chosen["CONTAINERS_CONF"] = str(file)
    return chosen


def podman(*words: str, seconds: float = 60.0, check: bool = True) -> str:
    """What the command wrote to stdout; a failure is an AssertionError with its stderr."""
    done = subprocess.run(
        ["podman", *words],
        env=settings(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert not check or done.returncode == 0, f"podman {' '.join(words)}\n{done.stderr[-3000:]}"
    return done.stdout


def base() -> str:
    """The image all others are built upon."""
    given = os.environ.get("CONTAINER_BASE")
    if given:
        return given
    if not podman("images", "--quiet", BASE).strip():
        with tempfile.TemporaryDirectory() as folder:
            _import(Path(folder) / "tree", Path(folder) / "tree.tar")
    return BASE


def _import(tree: Path, archive: Path) -> None:
    subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(tree)],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=BUILD_SECONDS,
    )
    # As Debian's own images have it: no package is kept, nor apt's caches.
    (tree / "etc/apt/apt.conf.d/docker-clean").write_text(
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };\n'
        'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n'
    )
    for cache in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(tree / cache)
        (tree / cache / "partial").mkdir(parents=True)
    with tarfile.open(archive, "w") as tar:
        tar.add(tree, arcname=".", filter=lambda one: None if one.ischr() else one)
    podman("import", str(archive), BASE, seconds=BUILD_SECONDS)


def build(dockerfile: Path, tag: str, context: Path, volumes: Sequence[str] = ()) -> None:
    """Builds with this machine's network and apt and pip as they are set up on it."""
    podman(
        "build",
        "--quiet",
        "--format=docker",  # the other format has no HEALTHCHECK
        "--network=host",
        f"--build-arg=BASE={base()}",
        *(f"--volume={volume}:ro" for volume in volumes),
        f"--file={dockerfile}",
        f"--tag={tag}",
        str(context),
        seconds=BUILD_SECONDS,
    )


def build_all() -> None:
    """The four images, and what stands in for those of a registry."""
    with tempfile.TemporaryDirectory() as folder:
        volumes = list(pip_volumes(Path(folder)))
        for service in SERVICES:
            dockerfile = ROOT / "services" / service / "Dockerfile"
            build(dockerfile, image(service), ROOT, volumes)
    here = Path(__file__).parent
    build(here / "stand-ins.Dockerfile", STAND_INS, here)


def image(service: str) -> str:
    return f"dapod-{service}:{VERSION}"


def pip_volumes(folder: Path) -> Iterator[str]:
    """This machine's pip settings as one file, and every file that they name, as `from:to`."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        # What comes from the environment overrides; both are listed.
        if section in ("global", "install", "download") or section == ":env:":
            settings[name] = value.strip("'\"")
    text = "".join(f"{name} = {value}\n" for name, value in settings.items())
    (folder / "pip.conf").write_text(f"[global]\n{text}")
    yield f"{folder}/pip.conf:/etc/pip.conf"
    for value in settings.values():
        for word in value.split():
            path = Path(urlsplit(word).path)
            if word.startswith(("/", "file:")) and path.exists():
                # An index is a folder of links into its neighbours.
                named = path.parent if word.startswith("file:") else path
                yield f"{named}:{named}"
