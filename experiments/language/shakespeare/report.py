"""The result of the character model as a table."""

from collections.abc import Mapping
from typing import Any

from experiments.common.report import duration, markdown_table
from experiments.language.shakespeare.config import Config

PUBLISHED = 1.88
"""The validation loss that nanoGPT's README gives for this setting, in nats a character."""


def table_of(config: Config, result: Mapping[str, Any]) -> str:
    """The result as Markdown: the table, then how it was made."""
    columns = {
        "nats a character": ["validation text, all of it", f"last {config.log_every} steps"],
        "ours": [f"{result[name]:.3f}" for name in ("validation_loss", "training_loss")],
        "nanoGPT's README": [str(result["published"] or "–"), "–"],
    }
    how = (
        f"{config.form}, {result['parameters']:,} parameters; {config.optimizer}, rate"
        f" {config.rate:g}, {config.steps} steps of {config.batch} windows of {config.length}"
    )
    facts = {
        "Training": f"{how}, seed {config.seed}",
        "Time": ", ".join(f"{name} {duration(s)}" for name, s in result["seconds"].items()),
        "Machine": f"{result['environment']['device']}, {result['environment']['cores']} cores",
        "Command": f"`{result['command']}`",
    }
    notes = [f"- {name}: {text}" for name, text in facts.items()]
    title = "# A language model of characters"
    return "\n".join([title, "", *markdown_table(columns), "", *notes, ""])
