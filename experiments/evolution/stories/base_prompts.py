"""How a model that was never taught the question can be asked for a story with three words."""

from collections.abc import Callable

from experiments.evolution.pretrained.families.stories import question

PROMPTS: dict[str, Callable[[str, str, str], str]] = {
    "the question": lambda x, y, z: question([x, y, z]),
    "two sentences": lambda x, y, z: (
        f"The {x} saw the {y} and the {z}. The {x} liked the {y}. The {y} liked the {z}.\n"
    ),
    "a header": lambda x, y, z: f"Words: {x}, {y}, {z}\n",
    "a list": lambda x, y, z: f"Once upon a time, there was a {x}, a {y} and a {z}.",
    "a girl": lambda x, y, z: (
        f"Once upon a time, there was a little girl named Lily. She had a {x}, a {y} and a {z}. "
        f"She loved to play with the {x}, the {y} and the {z}. One day,"
    ),
    "mom tells": lambda x, y, z: (
        f'"Tell me a story about a {x}, a {y} and a {z}," said Lily. Mom smiled and told a story '
        f"about the {x}, the {y} and the {z}.\n"
    ),
}
"""Texts before the story. The words in them don't count: the story must have them itself."""
