"""What fits and how long it takes, computed from a config before anything is rented.

    config + model shape + machines ──► split of the GPUs ──► memory by term ──► seconds by phase

It imports no torch, starts nothing and measures nothing: every number follows from a formula with a
source and from assumptions that are shown beside the answer (docs/plan.md). What a run really takes
stands in its metrics.
"""

from dapod.plan.assumptions import Assumptions
from dapod.plan.hardware import Machines
from dapod.plan.model_shape import ModelShape
from dapod.plan.run_plan import RunPlan, make_plan

__all__ = ["Assumptions", "Machines", "ModelShape", "RunPlan", "make_plan"]
