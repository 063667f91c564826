"""`dapod evaluate`: checks everything, asks what is still open, and says what came of it."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from dapod.cli import screen
from dapod.cli.evaluate import output as outputs
from dapod.cli.evaluate import report
from dapod.cli.evaluate.asking import Asker, ProblemFailed
from dapod.cli.evaluate.output import Output
from dapod.cli.evaluate.problems import Problems, read_problems
from dapod.cli.evaluate.record import ProblemRecord
from dapod.cli.evaluate.request import Flags, Request, read
from dapod.cli.evaluate.runner import EvaluationRunner, RunnerParts
from dapod.cli.evaluate.services import MODULES, services
from dapod.cli.evaluate.tally import Tally
from dapod.cli.fleet import ServiceSpec
from dapod.cli.lock import locked
from dapod.cli.ports import HOST
from dapod.cli.service_progress import ServiceProgress
from dapod.cli.supervisor import TooManyRestarts
from dapod.config import ConfigError

_BYTES_PER_TOKEN = 8
"""Of a kept response, at most: text as JSON."""


def evaluate(flags: Flags, arguments: Sequence[str], modules: Mapping[str, str] = MODULES) -> int:
    """Returns the exit status. Raises `ConfigError` for what the user must change.

    `arguments` are the command line's: the same ones go on with it. `modules` is what it starts.
    """
    request = read(flags)
    problems = read_problems(request.config, request.model)
    output = Output(
        path=request.out, identity=outputs.identity(request.config, request.model, problems)
    )
    output.check()
    _check_disk(request, problems)
    with locked(output.path, "evaluate") as lock:
        records = output.open(_about(request, problems))
        _log_to(output.logs / "evaluate.log")
        specs = _specs(request, problems, output, len(records), modules)
        status = _ask(request, problems, output, records, specs, lock, arguments)
    if status:
        return status
    tally = _tally(request, output.records())
    report.write_summary(output, _about(request, problems), tally)
    print()
    print(*report.lines(output, tally, problems.data_set.counts), sep="\n", flush=True)
    return 0


def _ask(
    request: Request,
    problems: Problems,
    output: Output,
    records: Sequence[ProblemRecord],
    specs: Sequence[ServiceSpec],
    lock: int,
    arguments: Sequence[str],
) -> int:
    """Asks the open problems; the exit status, 0 when none is left."""
    done = {record.problem for record in records}
    left = [problem for problem in problems.rows if problem.number not in done]
    if not left:
        print(f"all {len(done)} problems of {output.path} were finished before: nothing to ask")
        return 0
    addresses = {spec.name: f"{HOST}:{spec.grpc_port}" for spec in specs}
    shown = screen.for_stdout()
    progress = ServiceProgress(shown)
    again = f"go on with: dapod evaluate {shlex.join(arguments)}"
    try:
        progress.say(_headline(request, output, len(done), len(problems.rows)))
        progress.say(f"data {problems.data_set}")
        stopped = EvaluationRunner(
            RunnerParts(
                specs=specs,
                output=output,
                progress=progress,
                problems=left,
                records=records,
                asker=lambda stop: Asker(
                    request.config,
                    engine=addresses["engine"],
                    reward=addresses["reward"],
                    stop=stop,
                ),
                in_flight=request.config.rollout.groups_in_flight,
                tally=partial(_tally, request),
            )
        ).run(lock)
    except (TooManyRestarts, ProblemFailed) as error:
        progress.say(f"giving up: {error}")
        progress.say(again)
        return 1
    finally:
        shown.close()
    if stopped:
        print(
            f"stopped by {signal.Signals(stopped).name} after {len(output.records())} of "
            f"{len(problems.rows)} problems; nothing is left running"
        )
        print(again, flush=True)
        return 128 + stopped
    return 0


def _tally(request: Request, records: Sequence[ProblemRecord]) -> Tally:
    config = request.config
    return Tally(records=records, samples=config.evaluation.samples, pass_at=config.pass_at)


def _specs(
    request: Request, problems: Problems, output: Output, done: int, modules: Mapping[str, str]
) -> list[ServiceSpec]:
    """Writes down what the services are told."""
    run = request.config.as_run(max_prompt_tokens=problems.max_prompt_tokens)
    text = tomli_w.dumps(run.model_dump(mode="json", exclude_none=True))
    output.services_config.write_text(text, encoding="utf-8")
    return services(
        modules,
        config_file=output.services_config,
        run_dir=output.path,
        # The engine's seed follows from it: going on must not draw the first numbers again.
        worker_id=f"evaluate-{done}",
        environment=dict(os.environ),
    )


def _headline(request: Request, output: Output, done: int, total: int) -> str:
    config = request.config
    verb = f"goes on after {done} problems" if done else "starts"
    return (
        f"evaluation of {request.model} {verb} in {output.path}: {total} problems, "
        f"{config.evaluation.samples} answers each, temperature {config.sampling.temperature:g}, "
        f"top_p {config.sampling.top_p:g}, verifier {config.data.verifier}"
    )


def _about(request: Request, problems: Problems) -> Mapping[str, Any]:
    """What is evaluated, for people."""
    return {
        "model": str(request.model.directory),
        "config": request.config.model_dump(mode="json"),
        "data": str(problems.data_set),
    }


def _check_disk(request: Request, problems: Problems) -> None:
    """Raises `ConfigError` unless the disk could hold every response at its longest."""
    config = request.config
    if not config.evaluation.keep_responses:
        return
    answers = len(problems.rows) * config.evaluation.samples
    most = answers * config.sampling.max_response_tokens * _BYTES_PER_TOKEN
    existing = next(p for p in (request.out, *request.out.parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if most > free:
        raise ConfigError(
            f"{existing} has {free >> 20} MiB free, {answers} responses may take {most >> 20} MiB: "
            f"choose another --out, or do not keep them (--set evaluation.keep_responses=false)"
        )


def _log_to(file: Path) -> None:
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logger = logging.getLogger("dapod")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    logger.info("dapod evaluate, process %d", os.getpid())
