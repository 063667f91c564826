"""One run's configuration: a typed TOML file, checked as a whole before anything starts.

What is here changes what is learned or how much of a machine is used. Where services listen and
find each other is not: that is `dapod.environment`. Names carry their unit. Unknown keys are
refused.

Example: `load(Path("configs/quickstart.toml"), ["run.steps=4"])`.
"""

from dapod.config.eval_config import EvalConfig
from dapod.config.evaluation import Evaluation
from dapod.config.load import ConfigError, load, load_any, parse, within
from dapod.config.run_config import MAX_GROUP_BYTES, RunConfig
from dapod.config.sections import (
    MAX_DEADLINE_SECONDS,
    Algorithm,
    Buffer,
    Data,
    Model,
    Optimiser,
    Reward,
    RolloutEngine,
    Run,
    Sampling,
    Trainer,
)

__all__ = [
    "MAX_DEADLINE_SECONDS",
    "MAX_GROUP_BYTES",
    "Algorithm",
    "Buffer",
    "ConfigError",
    "Data",
    "EvalConfig",
    "Evaluation",
    "Model",
    "Optimiser",
    "Reward",
    "RolloutEngine",
    "Run",
    "RunConfig",
    "Sampling",
    "Trainer",
    "load",
    "load_any",
    "parse",
    "within",
]
