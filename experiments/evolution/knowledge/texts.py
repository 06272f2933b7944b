"""What the model reads, writes and learns: prompts, parsed lines, and rows of tokens."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.evolution.fewer_tokens import FewerTokens
from experiments.evolution.knowledge import people
from experiments.evolution.knowledge.people import Person, Question
from metajax import lm
from metajax.errors import ArgumentError

LONGEST_ANSWER = 3
"""Words of an answer that a model may write."""


def example(person: Person, wording: int, asked: dict[str, str]) -> str:
    """A passage with a question a line below it, in the passage's order, and an empty line."""
    found = people.questions(person, asked, people.attributes_in(wording))
    lines = "".join(f"{each.text} {each.answer}\n" for each in found)
    return f"{people.passage(person, wording)}\n{lines}\n"


def writing_prompt(person: Person, wording: int) -> str:
    """Examples of the same wording, and a passage whose questions the model is to write."""
    examples = [
        example(shown, wording, people.QUESTIONS[(wording + number) % len(people.QUESTIONS)])
        for number, shown in enumerate(people.shown_people())
    ]
    return f"{''.join(examples)}{people.passage(person, wording)}\n"


def closed_book(question: Question) -> str:
    """Examples about others, and a question; without a passage."""
    lines = "".join(f"{each.text} {each.answer}\n" for each in _asked_of_shown())
    return lines + question.text


def open_book(person: Person, question: Question, wording: int) -> str:
    """A question below a passage that has the answer, after such examples."""
    examples = [
        example(shown, wording, people.HELD_OUT_QUESTIONS) for shown in people.shown_people()[:2]
    ]
    return f"{''.join(examples)}{people.passage(person, wording)}\n{question.text}"


def _asked_of_shown() -> list[Question]:
    """A held-out question for each attribute, about the people of the examples in turn."""
    shown = people.shown_people()
    return [
        people.questions(shown[number % len(shown)], people.HELD_OUT_QUESTIONS)[number]
        for number in range(len(people.ATTRIBUTES))
    ]


class Parsed(NamedTuple):
    """Questions that a model wrote about a passage.

    Attributes:
        questions: those that are kept.
        lines: how many lines it wrote.
        dropped: how many lines were dropped, by reason.
    """

    questions: list[Question]
    lines: int
    dropped: dict[str, int]


def parse(text: str, person: Person, wording: int) -> Parsed:
    """Reads lines such as ``Where does Ann live? Oslo``.

    Only the passage decides: the answer must be words of it, and the question must name its person
    without telling the answer. A held-out question is left out, and so is a line that comes twice.

    >>> person = people.people(1)[0]
    >>> right = f"Where is {person.name}? {person.facts['city']}"
    >>> parse(f"{right}\\n{right}\\nWho? Nobody\\n\\nmore", person, 0).dropped
    {'twice': 1, 'no name': 1}
    """
    read = f" {people.normalised(people.passage(person, wording))} "
    name = f" {people.normalised(person.name)} "
    held_out = {
        people.normalised(each.text) for each in people.questions(person, people.HELD_OUT_QUESTIONS)
    }
    lines = [line for line in text.split("\n\n")[0].split("\n") if line.strip()]
    kept: dict[tuple[str, str], Question] = {}
    dropped: dict[str, int] = {}
    for line in lines:
        asked, mark, answer = line.strip().rpartition("?")
        question, words = f" {people.normalised(asked)} ", f" {people.normalised(answer)} "
        reasons = {
            "no question with an answer": not mark or not words.strip(),
            "no name": name not in f"{question.replace(' s ', ' ')}",
            "answer not in the passage": words not in read or words in name,
            "long answer": len(words.split()) > LONGEST_ANSWER,
            "answer in the question": words in question,
            "held-out question": question.strip() in held_out,
            "twice": (question, words) in kept,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is None:
            kept[question, words] = Question(f"{asked.strip()}?", answer.strip().rstrip("."))
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    return Parsed(list(kept.values()), len(lines), dropped)


class Line(NamedTuple):
    """Tokens of a line of text, and which of them are targets."""

    tokens: list[int]
    targets: list[bool]


class Words(FewerTokens):
    """A tokenizer of fewer tokens: those of the known texts, and a vocabulary's first ones."""

    def __init__(self, tokenizer: lm.HFTokenizer, vocab_size: int, most: int | None) -> None:
        everyone = [*people.people(people.MOST), *people.shown_people()]
        asked = [*people.QUESTIONS, people.HELD_OUT_QUESTIONS]
        texts = (
            example(each, wording, questions)
            for each in everyone
            for wording in range(len(people.WORDINGS))
            for questions in asked
        )
        super().__init__(tokenizer, texts, vocab_size, most)

    @property
    def bos(self) -> list[int]:
        """The begin token, where there is one."""
        return [] if self.bos_id is None else [self.bos_id]

    def passage(self, person: Person, wording: int) -> Line:
        """A passage as a line of which all tokens are targets."""
        tokens = self.encode(people.passage(person, wording) + "\n")
        return Line(tokens, [True] * len(tokens))

    def question(self, question: Question, *, whole: bool = False) -> Line:
        """A question as a line of which the answer is the target, or the ``whole`` line."""
        before = 0 if whole else len(self.encode(question.text))
        tokens = self.encode(f"{question.text} {question.answer}\n")
        return Line(tokens, [number >= before for number in range(len(tokens))])

    def questions(self, asked: Sequence[Question], share: float) -> list[Line]:
        """Lines; of a ``share`` of them the question is a target too."""
        whole = np.random.default_rng(0).random(len(asked)) < share
        return [self.question(q, whole=bool(w)) for q, w in zip(asked, whole, strict=True)]


def rows_of(
    sources: Sequence[Sequence[Line]],
    words: Words,
    *,
    budget: int,
    length: int,
    batch: int,
    rng: np.random.Generator,
) -> tuple[lm.TokenBatch, int]:
    """Rows with so many tokens, padding not counted, for as many updates as they are enough for.

    Lines of all sources have as many tokens each, and come in random order, again and again. A row
    is a begin token and whole lines.

    Args:
        sources: lines.
        words: the tokenizer.
        budget: tokens of all rows together; at most a batch less are made.
        length: tokens that the model reads of a row.
        batch: rows in an update.
        rng: of the order.

    Returns:
        A batch of arrays ``[updates, batch, length + 1]``, and the number of tokens.
    """
    longest = max(len(line.tokens) for lines in sources for line in lines) + len(words.bos)
    if longest > length + 1:
        raise ArgumentError(f"length: a line has {longest} tokens, a row {length} + 1")
    stream, documents, masks, count = _mixed(sources, rng), [], [], 0
    tokens, targets = [*words.bos], [False] * len(words.bos)
    while count < budget:
        line = next(stream)
        if len(tokens) + len(line.tokens) > length + 1:
            documents.append(tokens)
            masks.append(targets)
            count += len(tokens)
            tokens, targets = [*words.bos], [False] * len(words.bos)
        tokens, targets = tokens + line.tokens, targets + line.targets
    documents, masks = documents[:-1], masks[:-1]  # the last one exceeds the budget
    updates = len(documents) // batch
    if not updates:
        raise ArgumentError(f"tokens: {budget} are less than an update of {batch} × {length}")
    documents, masks = documents[: updates * batch], masks[: updates * batch]
    # Each row is a document: packing may not put two into one.
    packed = [lm.pack([d], length, masks=[m]) for d, m in zip(documents, masks, strict=True)]
    rows = lm.with_places(jax.tree.map(lambda *leaves: np.concatenate(leaves), *packed))
    by_update = lambda leaf: leaf.reshape(updates, batch, *leaf.shape[1:])
    return jax.tree.map(by_update, rows), sum(map(len, documents))


def _mixed(sources: Sequence[Sequence[Line]], rng: np.random.Generator) -> Iterator[Line]:
    """Lines without end, of the source that has had fewest tokens."""
    endless = [_shuffled(lines, rng) for lines in sources]
    had = [0] * len(sources)
    while True:
        number = int(np.argmin(had))
        line = next(endless[number])
        had[number] += len(line.tokens)
        yield line


def _shuffled(lines: Sequence[Line], rng: np.random.Generator) -> Iterator[Line]:
    while True:
        for number in rng.permutation(len(lines)):
            yield lines[number]
