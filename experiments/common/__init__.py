"""What experiments share: command line, run folder, training loop, pictures and reports."""

from experiments.common.best import best_params
from experiments.common.checkpoints import Checkpoints
from experiments.common.command_line import command, guard, keep_compiled, parse
from experiments.common.config import (
    DistributedConfig,
    RunConfig,
    RunError,
    TrainingConfig,
    check_positive,
)
from experiments.common.disk import locked
from experiments.common.fit import Fitted, NonFiniteError, fit
from experiments.common.folder import Run, create, open_run
from experiments.common.metrics import MetricsLog, read_metrics
from experiments.common.processes import connect, show
from experiments.common.progress import Stop, finish, progress, stop_requests
from experiments.common.report import Report, Row, environment, format_table, write_report

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
    "finish",
    "fit",
    "format_table",
    "guard",
    "keep_compiled",
    "locked",
    "open_run",
    "parse",
    "progress",
    "read_metrics",
    "show",
    "stop_requests",
    "write_report",
]
