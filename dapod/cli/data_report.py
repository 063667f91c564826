"""What `dapod config check` says of the data set, as far as this machine can tell."""

from pathlib import Path

from dapod.config import RunConfig
from dapod.config.source import HubSource, LocalSource
from dapod.dataset import read_data
from dapod.dataset.tokenised import read_tokenised


def data_report(config: RunConfig) -> str:
    """Reads what is here; downloads nothing. Raises `ConfigError` for data that cannot be used."""
    source = config.data.source
    if isinstance(source, HubSource):
        return f"data {config.data.path}: not read; dapod run downloads it"
    if isinstance(source, LocalSource) and not source.path.exists():
        return f"data {source.path}: not read; it is not on this machine"
    if not Path(config.model.path).is_dir():
        return (
            f"data {read_data(config.data)} (lengths not checked: no model at {config.model.path})"
        )
    tokenised = read_tokenised(
        config.data,
        model=Path(config.model.path),
        max_prompt_tokens=config.sampling.max_prompt_tokens,
    )
    return f"data {tokenised.data_set}"
