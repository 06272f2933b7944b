"""Stories in which given words occur: ``Words: dog, jump, happy`` and a story behind it.

A task names a noun, a verb and an adjective, as the prompts did that the TinyStories were written
to (Eldan and Li 2023, arXiv 2305.07759). The level is how many of the three it names. No program
writes a right answer, but one checks it: the words are there, and the story comes to an end.
"""

import re
from collections.abc import Sequence

import numpy as np

from experiments.evolution.pretrained.families.family import Family

NOUNS = (
    "ball bear bed bird boat book box bunny butterfly cake car cat dinner dog doll door dress duck "
    "family fish flower food forest frog game garden grass ground hat hill hole house kitchen lady "
    "leaf man mouse noise paper park party picture pond rabbit rain river rock room school sky "
    "squirrel stick store story street sun table town toy tree truck wall water wind window"
).split()
VERBS = (
    "catch climb cry dance draw eat explore find fix fly hide hug jump learn listen look reach "
    "read rest ride run share sing sleep smile stop swim talk touch try wait walk watch wear"
).split()
ADJECTIVES = (
    "angry bad beautiful blue brave bright broken careful clean cold colorful curious dark "
    "different dirty excited fast favorite friendly funny green hot hungry kind lost loud mean "
    "new nice old pink pretty proud red sad safe scared scary shiny small soft special strong "
    "surprised sweet tall tired warm wet yellow yummy"
).split()
"""Words that one in seven to one in seventy of a small model's stories have."""
KINDS = (NOUNS, VERBS, ADJECTIVES)

_QUESTION = re.compile(r"Words: ([a-z]+(?:, [a-z]+){0,2})\n")
_LOOP = re.compile(r"(\b[^.!?]{12,}[.!?])\W+\1\W+\1")


def stories() -> Family:
    """The family. An answer is at most ``LONGEST`` characters."""
    return Family(
        name="stories with given words",
        levels=range(1, len(KINDS) + 1),
        write=write,
        read=read,
        check=check,
        answer=None,
        longest=lambda level: (7 + 12 * level, LONGEST),
    )


LONGEST = 1200


def question(words: Sequence[str]) -> str:
    """The question that asks for these words.

    >>> question(["dog", "jump"])
    'Words: dog, jump\\n'
    """
    return f"Words: {', '.join(words)}\n"


def write(rng: np.random.Generator, level: int) -> str:
    """A random question that names so many words.

    >>> write(np.random.default_rng(0), 3)
    'Words: pond, listen, pink\\n'
    """
    return question([str(rng.choice(kind)) for kind in KINDS[:level]])


def words_of(text: str) -> list[str] | None:
    """The words that a question names; None for another text.

    >>> words_of("Words: dog, jump\\n"), words_of("Words: jump, dog\\n")
    (['dog', 'jump'], None)
    """
    found = _QUESTION.fullmatch(text)
    if not found:
        return None
    words = found[1].split(", ")
    return words if all(w in kind for w, kind in zip(words, KINDS, strict=False)) else None


def read(text: str) -> int | None:
    """How many words a question names; None for another text.

    >>> read("Words: dog, jump, happy\\n"), read("Words: dog, jump, sad\\n")
    (None, 3)
    """
    words = words_of(text)
    return None if words is None else len(words)


def words_in(story: str) -> set[str]:
    """The words of a story, in small letters.

    >>> sorted(words_in("The dog can't jump."))
    ['can', 'dog', 'jump', 't', 'the']
    """
    return set(re.findall(r"[a-z]+", story.lower()))


def ends_well(story: str) -> bool:
    """Whether a story ends with a full stop or the like, and says no sentence three times running.

    >>> ends_well("They went home."), ends_well("They went")
    (True, False)
    """
    return story.rstrip()[-1:] in ('.', '!', '?', '"') and not _LOOP.search(story)


def check(question: str, story: str) -> float:
    """1 if the story has all words and ends well, else 0.

    >>> check("Words: dog, jump, sad\\n", "A sad Dog did not jump.")
    1.0
    >>> check("Words: dog, jump, sad\\n", "A sad dog jumped.")
    0.0
    """
    words = words_of(question)
    return float(words is not None and words_in(story).issuperset(words) and ends_well(story))
