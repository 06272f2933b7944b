"""A verifier that is a function on strings: a program checks each answer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.types import Completions, Tasks, Verdict, Verifier
from metajax.lm.tokenizers import Tokenizer


def checked(
    tokenizer: Tokenizer,
    check: Callable[[str, str], float],
    *,
    end: int,
    begin: int | None = None,
    weigh: Callable[[jax.Array], Any] | None = None,
    name: str = "checked by a program",
) -> Verifier:
    """Trusts what a program finds right, where a task may have many right answers.

    Each completion with an end token gets a reward, ``check(prompt, answer)``; one without gets 0.
    The label is the first sample of the greatest reward, and the agreement the share of samples
    whose reward is above 0.

    Args:
        tokenizer: gives the text of prompt and answer.
        check: ``check(prompt, answer) -> reward`` in [0, 1], of texts without begin and end token;
            true and false will do. The same text is checked once a call.
        end: the token that ends an answer.
        begin: the token that prompts begin with; it isn't part of the text.
        weigh: ``weigh(agreement [n]) -> weights [n]`` in [0, 1], such as ``learnability`` or
            ``uncertainty``; 1 for every task with a reward if None.
        name: for reports.

    Raises:
        ArgumentError: from the verifier, a reward that isn't in [0, 1].

    Example:
        >>> from metajax import lm
        >>> tokenizer = lm.CharTokenizer.of("0123456789+=.")
        >>> right = lambda prompt, answer: answer == str(sum(map(int, prompt[:-1].split("+"))))
        >>> verifier = checked(tokenizer, right, end=tokenizer.encode(".")[0])
        >>> encode = lambda *texts: np.array([tokenizer.encode(text) for text in texts])
        >>> tasks = Tasks(encode("2+3="), np.array([4]), np.array([1]), np.array([True]))
        >>> tokens = encode("4.", "5.", "55")[None]
        >>> ended = np.array([[True, True, False]])
        >>> completions = Completions(tokens, 0.0 * tokens, np.array([[2, 2, 2]]), ended)
        >>> verdict = verifier.verify(tasks, completions)
        >>> verdict.rewards.tolist(), verdict.choice.tolist(), verdict.weight.tolist()
        ([[0.0, 1.0, 0.0]], [1], [1.0])
    """
    _checks.non_negative_int("end", end)

    def verify(tasks: Tasks, completions: Completions) -> Verdict:
        tokens, lengths, ended = (
            np.asarray(getattr(completions, part)) for part in ("tokens", "lengths", "ended")
        )
        rewards, known = np.zeros(lengths.shape, np.float32), {}
        for row, valid in enumerate(np.asarray(tasks.valid)):
            if not valid:
                continue
            length = int(tasks.lengths[row])
            prompt = np.asarray(tasks.prompts[row])[-length:].tolist()
            if prompt[0] == begin:
                prompt = prompt[1:]
            for sample in np.flatnonzero(ended[row]).tolist():
                answer = tokens[row, sample, : lengths[row, sample] - 1].tolist()
                text = _prompt_and_answer(tokenizer, prompt, answer)
                if text not in known:
                    known[text] = _reward(check, *text)
                rewards[row, sample] = known[text]
        agreement = jnp.asarray((rewards > 0).mean(axis=1), jnp.float32)
        weights = jnp.ones_like(agreement) if weigh is None else weigh(agreement)
        weight = jnp.where(agreement > 0, weights, 0).astype(jnp.float32)
        return Verdict(rewards.argmax(axis=1), weight, agreement, rewards)

    return Verifier(name, verify, uses_oracle=True)


def _prompt_and_answer(
    tokenizer: Tokenizer, prompt: list[int], answer: list[int]
) -> tuple[str, str]:
    """The texts of both. The answer is read behind its prompt, since some tokenizers drop a space
    that a text begins with."""
    first, both = tokenizer.decode(prompt), tokenizer.decode(prompt + answer)
    return first, both[len(first) :] if both.startswith(first) else tokenizer.decode(answer)


def _reward(check: Callable[[str, str], float], prompt: str, answer: str) -> float:
    reward = float(check(prompt, answer))
    if not 0 <= reward <= 1:
        raise ArgumentError(
            f"check must return a reward in [0, 1], got {reward} for the answer {answer!r} to "
            f"{prompt!r}."
        )
    return reward
