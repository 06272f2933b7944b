"""What experiments share: command line, run folder, training loop, pictures and reports."""

from metajax.runs._disk import locked
from metajax.runs.best import best_params
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
from metajax.runs.fit import Fitted, NonFiniteError, Stop, fit, progress, stop_requests
from metajax.runs.folder import Run, create, open_run
from metajax.runs.metrics import MetricsLog, read_metrics
from metajax.runs.processes import DistributedConfig, connect, show
from metajax.runs.report import Report, Row, environment, format_table, write_report

__all__ = [
    "Checkpoints",
    "DistributedConfig",
    "Fitted",
    "MetricsLog",
    "NonFiniteError",
    "Report",
    "Row",
    "Run",
    "RunConfig",
    "RunError",
    "Stop",
    "TrainingConfig",
    "best_params",
    "check_positive",
    "command",
    "connect",
    "create",
    "environment",
    "fit",
    "format_table",
    "guard",
    "locked",
    "open_run",
    "parse",
    "progress",
    "read_metrics",
    "show",
    "stop_requests",
    "write_report",
]
