"""`dapod run`: checks everything, runs it, and says what came of it."""

import logging
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

from dapod.cli import redis_ping, report, screen, status
from dapod.cli.answers import NoAnswers, compare
from dapod.cli.evaluations import EvaluationLog, read_evaluations
from dapod.cli.fleet import ServiceSpec
from dapod.cli.preflight import EMBEDDED, Prepared, Request, prepare
from dapod.cli.progress import Progress
from dapod.cli.runner import RunEnd, Runner, RunnerParts
from dapod.cli.steps import StepLog, read_steps
from dapod.cli.summary import Summary, summarise
from dapod.cli.supervisor import TooManyRestarts


def run(request: Request) -> int:
    """Returns the exit status. Raises `ConfigError` for what the user must change."""
    prepared = prepare(request)
    with prepared.directory.locked() as lock, prepared.directory.gone_when_refused():
        prepared.directory.open(prepared.config, prepared.redis)
        _log_to(prepared.directory.logs / "runner.log")
        return _run(request, prepared, lock)


def _run(request: Request, prepared: Prepared, lock: int) -> int:
    shown = screen.for_stdout()
    progress = Progress(screen=shown, steps_total=prepared.config.run.steps)
    try:
        progress.say(_headline(prepared))
        progress.say(f"data {prepared.data}")
        end = Runner(_parts(prepared, progress)).run(lock)
    except TooManyRestarts as error:
        progress.say(f"giving up: {error}")
        progress.say(f"go on with: {report.resume_command(prepared.directory.path)}")
        return 1
    finally:
        shown.close()
    if end.ended == "stopped":
        return _stopped(prepared, end)
    return _finished(request, prepared, end)


def _parts(prepared: Prepared, progress: Progress) -> RunnerParts:
    directory, config = prepared.directory, prepared.config
    buffer = next(spec for spec in prepared.specs if spec.name == "buffer")
    address = buffer.environment["DAPOD_BUFFER_ADDRESS"]
    redis_url = buffer.environment["DAPOD_REDIS_URL"]
    return RunnerParts(
        specs=prepared.specs,
        run_dir=directory.path,
        progress=progress,
        steps=StepLog(directory.steps_file),
        evaluations=EvaluationLog(directory.evaluations_file),
        ask_status=lambda: status.ask(address, directory.run_id, config.digest()),
        wait_first=lambda: _answers(redis_url),
    )


def _answers(redis_url: str) -> bool:
    try:
        return redis_ping.ping(urlsplit(redis_url)).startswith("+PONG")
    except OSError:
        return False


def _headline(prepared: Prepared) -> str:
    directory = prepared.directory
    verb = "goes on" if directory.resumed else "starts"
    redis = "" if prepared.redis == EMBEDDED else f", state in {prepared.redis}"
    return f"run {directory.run_id} {verb} in {directory.path}{redis}"


def _stopped(prepared: Prepared, end: RunEnd) -> int:
    rows = read_steps(prepared.directory.steps_file)
    name = signal.Signals(end.signal_number).name
    print(
        f"stopped by {name} after {len(rows)} of {prepared.config.run.steps} steps; "
        f"nothing is left running"
    )
    print(f"go on with: {report.resume_command(prepared.directory.path)}")
    return 128 + end.signal_number


def _finished(request: Request, prepared: Prepared, end: RunEnd) -> int:
    directory, config = prepared.directory, prepared.config
    rows = read_steps(directory.steps_file)
    summary = summarise(
        config=config, run_id=directory.run_id, run_dir=directory.path, rows=rows, end=end
    )
    summary.write(directory.path / "summary.json")
    if rows:
        # Slow to import, and only needed here.
        from dapod.cli.curves import draw_curves

        evaluated = read_evaluations(directory.evaluations_file)
        draw_curves(rows, evaluated, directory.run_id, directory.path / "curves.png")
    _print_section("", report.learned(summary) + report.unsound(summary))
    _print_answers(prepared, summary)
    _print_section("files", report.files(directory.path, summary))
    _print_section(
        "try next", report.next_commands(request.config_file, directory.path, config.run.steps)
    )
    return 0 if summary.sound else 1


def _print_answers(prepared: Prepared, summary: Summary) -> None:
    if summary.policy is None:
        return
    trainer: ServiceSpec = prepared.specs[-1]
    try:
        answers = compare(prepared.config, Path(summary.policy), trainer.environment)
    except NoAnswers as error:
        _print_section("", [f"the policies' answers are not shown: {error}"])
        return
    _print_section(
        "the same questions before and after, sampled as in training", report.answers_table(answers)
    )


def _print_section(title: str, lines: list[str]) -> None:
    print()
    if title:
        print(f"{title}:")
    for line in lines:
        print(f"  {line}" if title else line, flush=True)


def _log_to(file: Path) -> None:
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("dapod.runner")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    logger.info("runner %d", os.getpid())
