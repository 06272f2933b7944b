"""The errors that metajax raises for what a user can mend."""


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


class NonFiniteError(MetajaxError, FloatingPointError):
    """Training produced a NaN or an infinity."""
