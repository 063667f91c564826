"""A recording trained again, uninterrupted: the trainer as a container starts it, over a replay.

Recording ──► ScriptedBuffer (gRPC) ◄── python -m services.trainer ──► policies/v<N>/
"""

import os
import subprocess
import sys
from pathlib import Path

from dapod.cli.fleet import DEFAULTS
from dapod.cli.ports import free_ports
from tests.chaos.recorder import Recording
from tests.e2e.live_run import ROOT, LiveRun
from tests.trainer.doubles import ScriptedBuffer

_DEADLINE_SECONDS = 600.0


def train_again(recording: Recording, run: LiveRun, directory: Path) -> None:
    """Trains the recording with the run's own config into `directory`."""
    plans = recording.ledger()
    payloads = {
        group.group_id: recording.payloads[group.payload_sha256]
        for plan in plans
        for group in plan.groups
    }
    directory.mkdir()
    log = directory / "trainer.log"
    with ScriptedBuffer(plans, payloads) as buffer, log.open("wb") as output:
        status = subprocess.run(
            [sys.executable, "-m", "services.trainer"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=_environment(run, directory, buffer.address),
            timeout=_DEADLINE_SECONDS,
        ).returncode
    assert status == 0, log.read_text()[-3000:]


def _environment(run: LiveRun, directory: Path, buffer: str) -> dict[str, str]:
    return {
        **DEFAULTS,
        **os.environ,
        "DAPOD_CONFIG": str(run.run_dir / "config.toml"),
        "DAPOD_RUN_ID": run.identity()["run_id"],
        "DAPOD_RUN_DIR": str(directory),
        "DAPOD_BUFFER_ADDRESS": buffer,
        "DAPOD_OPS_PORT": str(free_ports(1)[0]),
    }
