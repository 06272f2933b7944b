"""What experiments share: command line, run folder, training loop, pictures and reports."""

from metajax.runs.checkpoints import Checkpoints
from metajax.runs.config import (
    RunConfig,
    RunError,
    TrainingConfig,
    check_positive,
    command,
    guard,
    parse,
)
from metajax.runs.fit import Fitted, NonFiniteError, fit, progress
from metajax.runs.folder import Run, create, open_run
from metajax.runs.metrics import MetricsLog, read_metrics
from metajax.runs.report import Report, Row, environment, format_table, write_report

__all__ = [
    "Checkpoints",
    "Fitted",
    "MetricsLog",
    "NonFiniteError",
    "Report",
    "Row",
    "Run",
    "RunConfig",
    "RunError",
    "TrainingConfig",
    "check_positive",
    "command",
    "create",
    "environment",
    "fit",
    "format_table",
    "guard",
    "open_run",
    "parse",
    "progress",
    "read_metrics",
    "write_report",
]
