"""Published recipes as data: what each preset sets, and where each value comes from.

`[algorithm] preset = "…"` fills every key of the tables below that neither the file nor `--set`
names. Sizes (group_size, prompts_per_step, lengths, overlong_cache_tokens), the learning rate and
what this platform adds (old_logprobs, max_staleness, …) are no preset's: they depend on the model,
the data and the machine, so the file says them.

Sources: DAPO, arXiv 2503.14476 (sections, equations); verl's reproduction of it (verl-recipe,
`dapo/run_dapo_qwen2.5_32b.sh`); GRPO, DeepSeekMath, arXiv 2402.03300; R1-Zero, DeepSeek-R1, Nature
645 (2025) and arXiv 2501.12948v2; Dr. GRPO, arXiv 2503.20783.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT = "dapo"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One value of a preset."""

    value: bool | float | str
    source: str
    """Section, equation or file that it is taken from."""


Preset = Mapping[str, Setting]
"""By `section.key`."""

_DAPO: Preset = {
    "algorithm.clip_low": Setting(value=0.2, source="DAPO section 4.1"),
    "algorithm.clip_high": Setting(value=0.28, source="DAPO sections 3.1 and 4.1: clip-higher"),
    "algorithm.dual_clip": Setting(value=0.0, source="DAPO eq. 8 has none"),
    "algorithm.loss_normaliser": Setting(value="prompt", source="DAPO eq. 8"),
    "algorithm.advantage_scale": Setting(value="std", source="DAPO eq. 9"),
    "algorithm.overlong_filter": Setting(
        value="off", source="DAPO eq. 8 masks nothing; filtering is a row of table 1"
    ),
    "algorithm.kl_coefficient": Setting(value=0.0, source="DAPO section 2.3"),
    "algorithm.dynamic_sampling": Setting(value=True, source="DAPO section 3.2"),
    "optimiser.warmup_steps": Setting(value=20, source="DAPO section 4.1: 20 rollout steps"),
}

_RECIPE = "verl-recipe dapo/run_dapo_qwen2.5_32b.sh"

_DAPO_VERL: Preset = {
    **_DAPO,
    "algorithm.dual_clip": Setting(value=10.0, source=f"{_RECIPE}: clip_ratio_c"),
    "algorithm.loss_normaliser": Setting(value="token", source=f"{_RECIPE}: loss_agg_mode"),
    "optimiser.warmup_steps": Setting(value=10, source=f"{_RECIPE}: lr_warmup_steps"),
    "optimiser.weight_decay": Setting(value=0.1, source=f"{_RECIPE}: weight_decay"),
    "optimiser.gradient_clip": Setting(value=1.0, source=f"{_RECIPE}: grad_clip"),
}

_GRPO: Preset = {
    "algorithm.clip_low": Setting(
        value=0.2, source="PPO's 0.2, DAPO's GRPO baseline; R1-Zero's is not published"
    ),
    "algorithm.clip_high": Setting(value=0.2, source="GRPO eq. 3: one epsilon for both sides"),
    "algorithm.dual_clip": Setting(value=0.0, source="GRPO eq. 3 has none"),
    "algorithm.loss_normaliser": Setting(value="sequence", source="GRPO eq. 3: 1/G, 1/|o_i|"),
    "algorithm.advantage_scale": Setting(value="std", source="R1-Zero eq. 3"),
    "algorithm.overlong_filter": Setting(value="off", source="R1-Zero names none"),
    "algorithm.kl_coefficient": Setting(
        value=0.001, source="R1-Zero, training details (DeepSeekMath: 0.04)"
    ),
    "algorithm.dynamic_sampling": Setting(value=False, source="R1-Zero names none"),
}

_DR_GRPO: Preset = {
    **_GRPO,
    "algorithm.clip_low": Setting(value=0.2, source="PPO's 0.2; Dr. GRPO names none"),
    "algorithm.clip_high": Setting(value=0.2, source="Dr. GRPO: one epsilon for both sides"),
    "algorithm.dual_clip": Setting(value=0.0, source="Dr. GRPO names none"),
    "algorithm.loss_normaliser": Setting(
        value="constant", source="Dr. GRPO section 3.2, listing 1: MAX_TOKENS"
    ),
    "algorithm.advantage_scale": Setting(value="none", source="Dr. GRPO section 3.2"),
    "algorithm.overlong_filter": Setting(value="off", source="Dr. GRPO names none"),
    "algorithm.kl_coefficient": Setting(value=0.0, source="Dr. GRPO: beta = 0 throughout"),
    "algorithm.dynamic_sampling": Setting(value=False, source="Dr. GRPO names none"),
}

PRESETS: Mapping[str, Preset] = {
    "dapo": _DAPO,
    "dapo_verl": _DAPO_VERL,
    "grpo": _GRPO,
    "dr_grpo": _DR_GRPO,
}


def chosen(raw: Mapping[str, Any]) -> tuple[str, Preset]:
    """Name and content of the preset that a parsed file asks for. `ValueError` for a wrong one."""
    table = raw.get("algorithm", {})
    if not isinstance(table, Mapping):
        raise ValueError(f'algorithm is a table: write [algorithm] and preset = "{table}" below it')
    name = table.get("preset", DEFAULT)
    if not isinstance(name, str) or name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ValueError(f"algorithm.preset = {name!r}: choose one of {known}")
    return name, PRESETS[name]


def filled(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The parsed file with its preset's values wherever it has none of its own."""
    _, preset = chosen(raw)
    whole = dict(raw)
    for key, setting in preset.items():
        section, _, name = key.partition(".")
        table = whole.get(section, {})
        if isinstance(table, Mapping):  # anything else is refused later, by name
            whole[section] = {name: setting.value, **table}
    return whole
