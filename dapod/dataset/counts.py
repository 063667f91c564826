"""What became of the rows of a data set, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """`read` = `repeated` + `contradicting` + `filtered` + `kept`."""

    read: int
    repeated: int = 0
    """Same messages and same answer as an earlier row."""
    contradicting: int = 0
    """Same messages as an earlier row, another answer; the earlier row's answer holds."""
    first_contradicting: str = ""
    """Its place and that of the earlier row."""
    filtered: int = 0
    """Longer than sampling.max_prompt_tokens, by data.long_prompts = "filter"."""

    @property
    def kept(self) -> int:
        return self.read - self.repeated - self.contradicting - self.filtered

    def __str__(self) -> str:
        parts = [f"{self.read} rows read"]
        if self.repeated:
            parts.append(f"{self.repeated} repeated")
        if self.contradicting:
            parts.append(
                f"{self.contradicting} dropped for another answer to the same prompt "
                f"(first: {self.first_contradicting})"
            )
        if self.filtered:
            parts.append(f"{self.filtered} filtered for their length")
        return ", ".join([*parts, f"{self.kept} kept"])
