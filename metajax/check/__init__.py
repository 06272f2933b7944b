"""Checks of a learner or a gradient of your own, with a sentence on each."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from metajax import _checks
from metajax.check import _contract as contract
from metajax.check._subject import Seen, Subject
from metajax.check.gradients import Slope, check_gradient
from metajax.errors import ArgumentError, CheckError
from metajax.learners.base import Learner
from metajax.types import Episode, Params, Sampler

__all__ = ["Check", "LearnerReport", "Slope", "check_gradient", "check_learner"]


class Check(NamedTuple):
    """One check of a report.

    Attributes:
        name: its name, as ``metajax.check_learner`` lists them.
        passed: None where it doesn't apply, was left out, or couldn't be made.
        sentence: what was seen, and what to do about it.
    """

    name: str
    passed: bool | None
    sentence: str


class LearnerReport(NamedTuple):
    """The result of ``check_learner``; ``str(report)`` is a table.

    Attributes:
        checks: every ``Check``, in the order of ``metajax.check_learner``'s list.
    """

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return not self.failed

    def __str__(self) -> str:
        words = {True: "ok", False: "FAILED", None: "-"}
        width = max(len(check.name) for check in self.checks)
        return "\n".join(
            f"{check.name:<{width}}  {words[check.passed]:<6}  {check.sentence}"
            for check in self.checks
        )

    def raise_if_failed(self) -> "LearnerReport":
        """The report itself, if none failed.

        Raises:
            CheckError: otherwise, with the sentences of those that did.
        """
        if self.failed:
            listed = "\n".join(f"  {check.name}: {check.sentence}" for check in self.failed)
            raise CheckError(f"{len(self.failed)} of {len(self.checks)} checks failed:\n{listed}")
        return self


def check_learner(
    learner: Learner,
    params: Params,
    episode: Episode | Sampler,
    *,
    n_way: int | None = None,
    skip: Collection[str] = (),
    rtol: float = 1e-2,
    seed: int = 0,
) -> LearnerReport:
    """Checks a learner of your own on a small task; seconds to a minute, most of it compilation.

    The checks, by name:

    - ``init``, ``adapt``, ``loss``: they run when traced, and return what the engine expects:
      floating-point meta-parameters; the adapted ones, which keep shapes and types, with an
      ``AdaptInfo``; a floating-point scalar with a dict.
    - ``data``: the task's arrays are finite, and not all the same. Where they are, checks that fail
      through it aren't counted against the learner.
    - ``labels``: integer targets are among the classes; out of range, a loss is NaN with some
      functions, and with others wrong in silence.
    - ``finite``: loss and meta-gradient are.
    - ``support``, ``support targets``: another support set, or only other targets in it, gives
      other adapted parameters, and another query loss.
    - ``query``, ``query targets``: the loss depends on the query set, and on its targets.
    - ``adapted``: the loss depends on the adapted parameters.
    - ``predict``: of classes, what it predicts is as accurate as the loss reports.
    - ``gradient``: the meta-gradient isn't zero; names the leaves where it is exactly that.
    - ``jit``, ``vmap``, ``chunks``: compiled, for several tasks at once, and for any
      ``tasks_per_chunk``, the numbers are the same.
    - ``tasks``: in another order they have the same meta-gradient.
    - ``examples``, ``classes``: whether the order of the examples, and the numbers of the classes,
      leave the loss as it is. Some algorithms mean them not to: these never fail.
    - ``padding``: what a ``MaskedBatch`` has beside its examples doesn't count.
    - ``float32``: types are kept. ``bfloat16``: it works, or what doesn't; this never fails.
    - ``retrace``: a second meta-step traces nothing.
    - ``determinism``: called twice, the same bits.
    - ``improvement``: adaptation lowers the loss on the support set, on average.
    - ``finite differences``: the meta-gradient is the derivative of the loss, in float64. Leave it
      out for a first-order learner, whose gradient isn't meant to be.

    Args:
        learner: a ``Learner``.
        params: the model's parameters, as for the trainer's ``init``.
        episode: one task, without a task axis; two more are made from it by small changes of its
            floating-point arrays. Or ``sample(key) -> Episode``, which draws three. A keyed learner
            gets keys from ``seed``.
        n_way: how many classes a task has, where targets are class indices. Without it, ``labels``
            infers it from what the loss does with the labels that it sees.
        skip: names of checks to leave out.
        rtol: how far float32 results that should agree may differ, relative to a leaf's largest
            element.
        seed: of the random tasks, inputs and directions.

    Returns:
        A ``LearnerReport``; its ``raise_if_failed()`` is for tests.

    Raises:
        ArgumentError: if ``skip`` names no check, or ``n_way`` isn't a positive integer.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> def loss_fn(params, batch):  # forgets the targets
        ...     inputs, targets = batch
        ...     return jnp.mean((inputs @ params) ** 2)
        >>> batch = metajax.Batch(jnp.eye(3) + 0.5, jnp.array([1.0, 2.0, 3.0]))
        >>> learner = metajax.maml(loss_fn, optax.sgd(0.1), steps=1)
        >>> report = metajax.check_learner(learner, jnp.ones(3), metajax.Episode(batch, batch))
        >>> report.passed, [check.name for check in report.failed]
        (False, ['support targets', 'query targets'])
        >>> report.failed[0].sentence.split(": ")[1]
        'the loss of the inner loop ignores the targets'
    """
    if n_way is not None:
        _checks.positive_int("n_way", n_way)
    unknown = set(skip) - set(contract.CHECKS)
    if unknown:
        raise ArgumentError(
            f"skip names no check: {sorted(unknown)}; they are {list(contract.CHECKS)}."
        )
    subject = Subject(learner, params, episode, n_way, rtol, seed)
    done: list[Check] = []
    broken = None  # the first that makes all others pointless
    for name, made in contract.CHECKS.items():
        if name in skip:
            check = Check(name, None, "left out, as asked")
        elif broken is not None:
            check = Check(name, None, f"not made, since {broken} failed")
        else:
            check = Check(name, *_outcome(made, subject))
        done.append(check)
        if check.passed is False and name in contract.ESSENTIAL:
            broken = name
    return LearnerReport(tuple(_blamed(done)))


def _blamed(done: list[Check]) -> list[Check]:
    """The checks, with what data that tell nothing may have caused put down to the data."""
    uniform = [check for check in done if check.name == "data" and check.passed is False]
    if not uniform:
        return done
    sentence = uniform[0].sentence
    unfair = {check.name for check in done if check.passed is False} & contract.ON_DATA
    changes = {name: Check(name, None, f"can't be told, since {sentence}") for name in unfair}
    if not unfair:
        changes["data"] = Check("data", None, sentence)
    return [changes.get(check.name, check) for check in done]


def _outcome(
    made: Callable[[Subject], Seen],
    subject: Subject,
) -> Seen:
    try:
        return made(subject)
    except Exception as error:  # a user's own function may raise anything
        lines = str(error).strip().splitlines()
        return False, f"raised {type(error).__name__}: {lines[0] if lines else 'without a message'}"
