"""Stories in which three given words occur.

The question is the beginning of a story, in which each of three things stands several times: models
that were trained on stories alone know no headers. The story has the words only if they come again
behind it. No program writes a right answer, but one checks it: the words are there, and the story
comes to an end.

The words are nouns. Stories go on about the things that they begin with; a verb comes back in
another tense.
"""

import re
from collections.abc import Sequence

import numpy as np

from experiments.evolution.pretrained.families.family import Family

_NOUNS = (
    "apple bag ball balloon beach bear bed bike bird boat book bottle bowl box brother bug "
    "bunny butterfly cake candy car carrot castle cat chair clothes cookie doctor dog doll "
    "door dress duck elephant farm fire fish floor flower food forest frog fruit game garden "
    "gift grass hat hill hole house ice jar juice kitchen lady lake leaf letter lion man "
    "monkey monster mouse music nest noise owner paper park party pet picture plant pond "
    "princess puppy rabbit rain river road rock room sand sandwich school sea sky snack snake "
    "squirrel stick store storm street sun swing table tail tower town toy train treasure "
    "tree truck voice wall water wind window woods yard"
)
WORDS = frozenset(_NOUNS.split())
"""Nouns of children's stories."""
COUNT = 3
"""Words of a question."""
LONGEST = 1200
"""Characters of a story."""

_QUESTION = re.compile(
    r"Once upon a time, there was a ([a-z]+)\. The \1 saw a ([a-z]+)\. The \2 saw a ([a-z]+)\. "
    r"The \3 liked the \1\. The \1 liked the \2\. The \2 liked the \3\. "
    r"One day, the \1, the \2 and the \3 were"
)
_LOOP = re.compile(r"(\b[^.!?]{12,}[.!?])\W+\1\W+\1")


def stories() -> Family:
    """The family; all its questions are of one level."""
    return Family(
        name="stories with three given words",
        levels=range(1, 2),
        write=write,
        read=read,
        check=check,
        answer=None,
        longest=lambda level: (280, LONGEST),
    )


def question(words: Sequence[str]) -> str:
    """The question that asks for three words; they stand in the alphabet's order.

    >>> question(["tree", "dog", "hat"])[:65]
    'Once upon a time, there was a dog. The dog saw a hat. The hat saw'
    """
    x, y, z = sorted(words)
    return (
        f"Once upon a time, there was a {x}. The {x} saw a {y}. The {y} saw a {z}. The {z} liked "
        f"the {x}. The {x} liked the {y}. The {y} liked the {z}. One day, the {x}, the {y} and the "
        f"{z} were"
    )


def write(rng: np.random.Generator, level: int) -> str:
    """A random question.

    >>> words_of(write(np.random.default_rng(0), 1))
    ['leaf', 'pet', 'street']
    """
    return question(list(map(str, rng.choice(sorted(WORDS), COUNT, replace=False))))


def words_of(text: str) -> list[str]:
    """The words that a question names; none for another text.

    >>> words_of(question(["dog", "tree", "hat"])), words_of(question(["dog", "dog", "hat"]))
    (['dog', 'hat', 'tree'], [])
    """
    found = _QUESTION.fullmatch(text)
    words = list(found.groups()) if found else []
    known = WORDS.issuperset(words) and words == sorted(set(words))
    return words if known else []


def read(text: str) -> int | None:
    """1 for a question, None for another text.

    >>> read(question(["dog", "tree", "hat"])), read("The dog saw the hat.")
    (1, None)
    """
    return 1 if words_of(text) else None


def words_in(story: str) -> set[str]:
    """The words of a story, in small letters.

    >>> sorted(words_in("The dog can't jump."))
    ['can', 'dog', 'jump', 't', 'the']
    """
    return set(re.findall(r"[a-z]+", story.lower()))


def nouns_in(story: str) -> list[str]:
    """The nouns of ``WORDS`` in a story, each once, as they come.

    >>> nouns_in("A dog and a hat. The dog sat by a tree.")
    ['dog', 'hat', 'tree']
    """
    found = re.findall(r"[a-z]+", story.lower())
    return list(dict.fromkeys(word for word in found if word in WORDS))


def ends_well(story: str) -> bool:
    """Whether a story ends as a sentence does, and says nothing three times running.

    >>> ends_well("They went home."), ends_well("They went")
    (True, False)
    >>> ends_well("They went to the park. They went to the park. They went to the park.")
    False
    """
    return story.rstrip()[-1:] in tuple('.!?"') and not _LOOP.search(story)


def check(question: str, story: str) -> float:
    """1 if the story has all words and ends well, else 0.

    >>> asked = question(["dog", "tree", "hat"])
    >>> check(asked, "A Dog with a hat sat by a tree."), check(asked, "Dogs have no hat. A tree!")
    (1.0, 0.0)
    """
    words = words_of(question)
    return float(bool(words) and words_in(story).issuperset(words) and ends_well(story))
