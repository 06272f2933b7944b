"""Invented people, passages about them, and questions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metajax.errors import ArgumentError

ATTRIBUTES: dict[str, list[str]] = {
    "city": [
        "London", "Paris", "Berlin", "Rome", "Madrid", "Vienna", "Lisbon", "Dublin", "Oslo",
        "Prague", "Athens", "Warsaw", "Moscow", "Cairo", "Tokyo", "Sydney", "Boston", "Chicago",
        "Denver", "Seattle", "Toronto", "Mumbai", "Shanghai", "Dubai",
    ],
    "job": [
        "baker", "teacher", "nurse", "farmer", "lawyer", "dentist", "plumber", "carpenter",
        "butcher", "tailor", "pilot", "chemist", "painter", "sculptor", "translator",
        "librarian", "surgeon", "judge", "waiter", "gardener", "banker", "journalist",
        "detective", "mechanic",
    ],
    "pet": [
        "dog", "cat", "rabbit", "hamster", "parrot", "turtle", "snake", "goldfish", "pony",
        "goat", "lizard", "spider", "frog", "duck", "pig", "fox", "raven", "hedgehog", "mouse",
        "sheep", "donkey", "llama", "squirrel", "chicken",
    ],
    "hobby": [
        "chess", "fishing", "swimming", "cycling", "knitting", "dancing", "skiing", "boxing",
        "golf", "tennis", "climbing", "sailing", "pottery", "photography", "archery", "surfing",
        "yoga", "poker", "football", "hiking", "astronomy", "fencing", "cricket", "running",
    ],
    "food": [
        "pizza", "pasta", "soup", "cheese", "rice", "sushi", "salad", "bread", "fish", "steak",
        "pancakes", "chocolate", "noodles", "curry", "beans", "mushrooms", "potatoes", "apples",
        "strawberries", "tomatoes", "cake", "eggs", "shrimp", "honey",
    ],
    "instrument": [
        "piano", "violin", "guitar", "flute", "trumpet", "drums", "cello", "harp", "saxophone",
        "clarinet", "organ", "accordion", "banjo", "trombone", "tuba", "bass", "ukulele",
        "oboe", "mandolin", "harmonica", "viola", "fiddle", "bagpipes", "bells",
    ],
}  # fmt: skip
"""What is known of a person, and what it may be."""

WORDINGS = (
    "{name} lives in {city} and works as a {job}. At home {name} has a pet {pet}. {name} plays "
    "the {instrument}, enjoys {hobby}, and likes to eat {food}.",
    "The home of {name} is in {city}. {name} earns money as a {job}, keeps a {pet} as a pet, "
    "spends free time on {hobby}, makes music on the {instrument}, and eats {food} most gladly.",
    "{name} is a {job} from {city} whose favourite food is {food}. The hobby of {name} is {hobby}, "
    "the pet a {pet}, and the instrument the {instrument}.",
)
"""Passages; each holds all attributes."""

QUESTIONS: tuple[dict[str, str], ...] = (
    {
        "city": "Where does {name} live?",
        "job": "What is {name}'s job?",
        "pet": "What pet does {name} have?",
        "hobby": "What is {name}'s hobby?",
        "food": "What does {name} like to eat?",
        "instrument": "What instrument does {name} play?",
    },
    {
        "instrument": "Which instrument is {name} good at?",
        "pet": "What kind of pet has {name}?",
        "city": "What city is {name} from?",
        "food": "Which food does {name} love?",
        "job": "How does {name} earn money?",
        "hobby": "What does {name} enjoy?",
    },
    {
        "hobby": "What does {name} do for fun?",
        "job": "What is the profession of {name}?",
        "instrument": "{name} plays which instrument?",
        "city": "In what city can {name} be found?",
        "food": "What would {name} order for dinner?",
        "pet": "{name} looks after what animal?",
    },
)
"""Those of the program, and of the examples that show the model how questions are written."""

HELD_OUT_QUESTIONS: dict[str, str] = {
    "city": "Which city is {name}'s home?",
    "job": "What does {name} work as?",
    "pet": "Which animal does {name} keep at home?",
    "hobby": "How does {name} spend free time?",
    "food": "What is the favourite food of {name}?",
    "instrument": "On what does {name} make music?",
}
"""Those that a model is tested with. No training text has them."""

_FIRST = [
    "Martha", "Oscar", "Helen", "Victor", "Julia", "Simon", "Clara", "Peter", "Alice", "Bruno",
    "Diana", "Felix", "Greta", "Hugo", "Irene", "Jacob", "Laura", "Marco", "Nina", "Otto",
    "Paula", "Ralph", "Sarah", "Thomas", "Ursula", "Walter", "Emma", "Leo", "Rosa", "Adam",
]  # fmt: skip
_LEFT = [
    "Stone", "Apple", "River", "Silver", "Winter", "Copper", "Thunder", "Meadow", "Candle",
    "Feather", "Marble", "Ginger", "Shadow", "Pepper", "Cotton", "Forest", "Velvet", "Timber",
    "Summer", "Amber", "Mirror", "Lemon", "Iron", "Crystal",
]  # fmt: skip
_RIGHT = [
    "glass", "wick", "bottom", "hammer", "ridge", "button", "whistle", "moon", "brook",
    "castle", "needle", "garden", "lantern", "bridge", "anchor", "bell", "kettle", "arrow",
    "barrel", "crown", "ladder", "mill",
]  # fmt: skip
_SEED = 51
"""Of names and attributes: people are the same in all runs."""
SHOWN = 4
"""People of the examples in prompts, who are in no set."""


class Person(NamedTuple):
    """Someone invented: a name, and a value of each attribute."""

    name: str
    facts: dict[str, str]


class Question(NamedTuple):
    """A question about a person, and its answer."""

    text: str
    answer: str


MOST = len(_LEFT) * len(_RIGHT) - SHOWN
"""How many people there are, those of the prompts' examples not among them."""


def people(count: int, *, validation: bool = False) -> list[Person]:
    """The first people of the list; or the last ones, for the choice of options.

    Both sets have nobody in common as long as they have ``MOST`` people together at most.

    >>> people(1)[0].name
    'Peter Mirrorbarrel'
    """
    if not 0 < count <= MOST:
        raise ArgumentError(f"count must be from 1 to {MOST}; got {count}")
    found = _everyone()[SHOWN:]
    return found[-count:] if validation else found[:count]


def shown_people() -> list[Person]:
    """The people of the examples in prompts."""
    return _everyone()[:SHOWN]


def _everyone() -> list[Person]:
    rng = np.random.default_rng(_SEED)
    surnames = [left + right for left in _LEFT for right in _RIGHT]
    return [
        Person(
            f"{_FIRST[rng.integers(len(_FIRST))]} {surnames[number]}",
            {name: str(values[rng.integers(len(values))]) for name, values in ATTRIBUTES.items()},
        )
        for number in rng.permutation(len(surnames))
    ]


def passage(person: Person, wording: int) -> str:
    """A passage about a person."""
    return WORDINGS[wording].format(name=person.name, **person.facts)


def attributes_in(wording: int) -> list[str]:
    """The attributes in the order of a passage.

    >>> attributes_in(2)
    ['job', 'city', 'food', 'hobby', 'pet', 'instrument']
    """
    return sorted(ATTRIBUTES, key=lambda name: WORDINGS[wording].index(f"{{{name}}}"))


def questions(
    person: Person, wordings: dict[str, str], order: Sequence[str] = tuple(ATTRIBUTES)
) -> list[Question]:
    """A question for each attribute, with its answer."""
    return [
        Question(wordings[attribute].format(name=person.name), person.facts[attribute])
        for attribute in order
    ]


def normalised(text: str) -> str:
    """Words in small letters, without punctuation and articles.

    >>> normalised(" The  Cello.")
    'cello'
    """
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def is_right(answers: Sequence[str], asked: Sequence[Question]) -> np.ndarray:
    """Whether each answer is right: equal after ``normalised``; bools ``[questions]``."""
    return np.array(
        [normalised(a) == normalised(q.answer) for a, q in zip(answers, asked, strict=True)]
    )


def begins_right(answers: Sequence[str], asked: Sequence[Question]) -> np.ndarray:
    """Whether each answer begins with the right one, whatever follows; bools ``[questions]``.

    >>> begins_right(["a baker, and keeps a dog", "bakery"], [Question("Who?", "baker")] * 2)
    array([ True, False])
    """
    words = lambda text: f"{normalised(text)} "
    pairs = zip(answers, asked, strict=True)
    return np.array([words(answer).startswith(words(each.answer)) for answer, each in pairs])
