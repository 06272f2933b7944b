"""Options of the experiments with string rules, and which rules are held out.

Six compositions are held out: their parts occur in training, but never together.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import metajax
from experiments import common
from experiments.language.rules.tasks import FAMILIES, Words, string_tasks
from metajax.errors import ArgumentError

HELD_OUT = (
    "reverse+caesar", "rotate+substitution", "swap+mirror", "sort+caesar", "shuffle+plain",
    "reverse+grammar",
)  # fmt: skip
SEEN = tuple(family for family in FAMILIES if family not in HELD_OUT)
BASE_STEPS = 4000
"""Updates of the base model."""
MICRO_BATCH = 4
"""Documents computed together: as many as stay in a core's cache."""


@dataclasses.dataclass(frozen=True)
class RulesConfig(common.RunConfig):
    """The options that experiments with string rules share."""

    letters: int = 8
    """Size of the alphabet."""
    length: int = 4
    """Letters in a word."""
    k_shot: int = 8
    """Examples in a task's support set."""
    query: int = 8
    """Examples in its query set."""
    width: int = 96
    """Width of the base model's residual stream, in heads of 32."""
    layers: int = 3
    """Its blocks."""
    base: Path | None = None
    """A trained base model: the folder base/model of another run; without it, one is trained."""
    base_rate: float = 4e-3
    """The base model's learning rate after the warm-up."""
    base_batch: int = 32
    """Documents in an update, a multiple of 4."""
    rank: int = 8
    """Rank of the low-rank factors."""
    test_episodes: int = 300
    """Test tasks of held-out families, at least; as many of each family."""

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(
            self, "letters", "length", "k_shot", "query", "layers", "base_rate", "rank"
        )
        for name, unit in (("base_batch", MICRO_BATCH), ("width", 32)):
            value = getattr(self, name)
            if value <= 0 or value % unit:
                raise ArgumentError(f"{name} must be a multiple of {unit}; got {value}")
        if self.test_episodes < 2 * len(HELD_OUT):
            raise ArgumentError(
                f"test_episodes must be at least 2 for each of {len(HELD_OUT)} families; got "
                f"{self.test_episodes}"
            )

    @property
    def words(self) -> Words:
        """The words of the tasks."""
        return Words(self.letters, self.length)

    def sampler(self, families: Sequence[str]) -> metajax.Sampler:
        """Tasks of these families, a line in a row."""
        return string_tasks(self.words, families=families, k_shot=self.k_shot, query=self.query)
