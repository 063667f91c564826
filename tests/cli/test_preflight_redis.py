"""A run whose state is in somebody's Redis: the password reaches the buffer, and no file."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

from dapod.cli.preflight import Request, prepare
from dapod.config import load
from tests.tls_redis import HOST, PASSWORD, GuardedValkey


def test_no_file_of_the_run_and_no_other_process_has_the_password(
    config_file: Path, tmp_path: Path
) -> None:
    server = GuardedValkey(tmp_path, "~* +@all")
    server.start()
    url = f"redis://dapod:{quote(PASSWORD, safe='')}@{HOST}:{server.port}/0"
    try:
        prepared = prepare(
            Request(
                config_file=config_file,
                config=load(config_file),
                rollouts=2,
                run_dir=tmp_path / "run",
                resume=False,
                redis_url=url,
                environment={"DAPOD_REDIS_URL": url},
            )
        )
    finally:
        server.kill()
    prepared.directory.open(prepared.config, prepared.redis)
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert files and not any(_secret_in(file.read_text()) for file in files)
    said = json.loads((tmp_path / "run" / "run.json").read_text())["redis"]
    assert said == f"redis://dapod:***@{HOST}:{server.port}/0"
    knowing = [
        spec.name
        for spec in prepared.specs
        if _secret_in(" ".join((*spec.command, *spec.environment.values())))
    ]
    assert knowing == ["buffer"]


def _secret_in(text: str) -> bool:
    return PASSWORD in text or quote(PASSWORD, safe="") in text
