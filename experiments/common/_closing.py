"""What is closed at the end of a ``with`` block."""

import abc
from typing import Self


class Closing(abc.ABC):
    """A context manager that gives itself, and is closed at the end, however that comes.

    >>> class Door(Closing):
    ...     def close(self):
    ...         print("closed")
    >>> with Door():
    ...     print("open")
    open
    closed
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of what is open."""
