"""What vLLM makes of our arguments: `python engine_config.py CONFIG MODEL SECTION.KEY=VALUE…`.

A program: vLLM reads variables when it is imported, and what it sets stays. Prints, as JSON, the
sequences and tokens of a pass; there is no GPU here, so of its engine only the scheduler is built.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from dapod import config as configuration
from services.rollout import settings

SIZES = ("max_num_seqs", "max_num_batched_tokens")


def main(config_file: str, model: str, *overrides: str) -> None:
    config = configuration.load(Path(config_file), overrides)
    settings.set_environment(os.environ, config, cpu=True)
    print(json.dumps({"cpu": _on_cpu(config, model), "gpu": _on_gpu(config, model)}))


def _on_cpu(config: configuration.RunConfig, model: str) -> list[int]:
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    arguments = settings.engine_arguments(config, model=Path(model), worker_id="a", cpu=True)
    # What AsyncLLM takes for itself.
    built = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
    return _sizes(built.scheduler_config)


def _on_gpu(config: configuration.RunConfig, model: str) -> list[int]:
    from vllm.config import SchedulerConfig

    arguments = settings.engine_arguments(config, model=Path(model), worker_id="a", cpu=False)
    given = {name: arguments[name] for name in ("max_model_len", *SIZES)}
    return _sizes(SchedulerConfig(**given, is_encoder_decoder=False))


def _sizes(scheduler: Any) -> list[int]:
    return [getattr(scheduler, name) for name in SIZES]


if __name__ == "__main__":
    main(*sys.argv[1:])
