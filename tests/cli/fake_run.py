"""A runner over services that are one-line scripts: `python fake_run.py RUN_DIR SERVICES.json`.

SERVICES.json maps names to Python source, in starting order; exit status 0 of `trainer` ends the
run. What a real run gives to the runner is data, so this needs no double of anything.
"""

import json
import os
import sys
from pathlib import Path

from dapod.cli.evaluations import EvaluationLog
from dapod.cli.fleet import ServiceSpec
from dapod.cli.progress import Progress
from dapod.cli.runner import Runner, RunnerParts
from dapod.cli.screen import PlainScreen
from dapod.cli.status import RunStatus
from dapod.cli.steps import StepLog
from dapod.cli.supervisor import TooManyRestarts
from dapod.config import ConfigError


def main(run_dir: Path, services: dict[str, str]) -> int:
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    parts = RunnerParts(
        specs=[
            ServiceSpec(
                name=name, command=(sys.executable, "-c", source), environment=dict(os.environ)
            )
            for name, source in services.items()
        ],
        run_dir=run_dir,
        progress=Progress(screen=PlainScreen(), steps_total=4),
        steps=StepLog(run_dir / "steps.jsonl"),
        evaluations=EvaluationLog(run_dir / "evaluations.jsonl"),
        ask_status=lambda: RunStatus(finished=not (run_dir / "unfinished").exists()),
    )
    try:
        end = Runner(parts).run()
    except ConfigError as error:
        print(f"dapod: {error}", file=sys.stderr)
        return 2
    except TooManyRestarts as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"ended": end.ended, "restarts": end.restarts}))
    return 0 if end.ended == "finished" else 128 + end.signal_number


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
