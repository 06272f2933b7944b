"""The errors that metajax raises for what a user can mend."""

from typing import Any


class MetajaxError(Exception):
    """Any of them: the message names what was given, its value, and what to do.

    Example:
        >>> import metajax
        >>> try:
        ...     metajax.task_mesh(0)
        ... except metajax.MetajaxError as error:
        ...     print(error)
        n_tasks must be at least 1, got 0.
    """


class ArgumentError(MetajaxError, ValueError):
    """An argument has a value or a shape that can't be used."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument is of a type that can't be used."""


class FileError(ArgumentError):
    """A file can't be read, or doesn't hold what it should. The message names its path."""


class NonFiniteError(MetajaxError, FloatingPointError):
    """Training produced a NaN or an infinity.

    Attributes:
        state: the last good training state, where the error has it; otherwise None.
        step: the outer step that was bad, counted from 1; None where it isn't known.
        tasks: which of its tasks were bad, counted from 0; empty where that isn't known.
    """

    def __init__(
        self,
        message: str = "",
        *,
        state: Any = None,
        step: int | None = None,
        tasks: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.state = state
        self.step = step
        self.tasks = tasks


class CheckError(MetajaxError, AssertionError):
    """A check of a user's own functions failed: the message says which, and how."""


class ServerError(MetajaxError, RuntimeError):
    """A server refuses, gives no answer, or answers with what can't be used.

    Attributes:
        status: of the HTTP answer; None where there was none.
    """

    def __init__(self, message: str = "", *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
