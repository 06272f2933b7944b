"""Whether class indices are among the classes, as far as it can be seen."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from metajax.check._perturb import labelled, with_targets
from metajax.check._subject import Seen, Subject
from metajax.types import PyTree

MOST = 32
"""So many of the largest labels are looked at."""


def labels(subject: Subject) -> Seen:
    """Integer targets of both sets: by ``n_way``, or by what the loss does with them."""
    task = subject.tasks[0]
    sentences = []
    for name, batch in (("support", task.support), ("query", task.query)):
        targets = _class_indices(batch)
        if targets is None:
            continue
        low, high = int(targets.min()), int(targets.max())
        if subject.n_way is not None:
            if low < 0 or high >= subject.n_way:
                return False, (
                    f"the {name} set's targets go from {low} to {high}, and n_way={subject.n_way} "
                    f"means 0 to {subject.n_way - 1}"
                )
            sentences.append(f"{name} {low} to {high}")
            continue
        bad, sentence = _by_the_loss(subject, batch, targets)
        if bad:
            return False, (
                f"the {name} set's targets go from {low} to {high}, and the loss takes {bad} as it "
                f"takes a number that is no class: {sentence}. Number the classes from 0, or make "
                "the network's last layer wider"
            )
        sentences.append(f"{name} {low} to {high} ({sentence})")
    if not sentences:
        return None, "no integer targets that can be told apart"
    return True, "; ".join(sentences)


def _class_indices(batch: PyTree) -> np.ndarray | None:
    """Integer targets ``[examples]`` of a labelled batch, without padding."""
    if not labelled(batch):
        return None
    targets, mask = np.asarray(batch[1]), getattr(batch, "mask", None)
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        return None
    real = targets if mask is None else targets[np.asarray(mask).astype(bool)]
    return real if real.size else None


def _all(batch: PyTree, label: int) -> PyTree:
    """The batch with this target for every example."""
    return with_targets(batch, jnp.full(batch[1].shape, label, batch[1].dtype))


def _by_the_loss(subject: Subject, batch: Any, targets: np.ndarray) -> tuple[list[int], str]:
    """Which labels the loss takes for none, and what it does with such."""
    task, lowest = subject.tasks[0], int(targets.min())
    adapted, loss = subject.compiled(subject.near, task)
    if not jnp.isfinite(loss) and labelled(task.support):
        # Labels out of range in the support set would hide all others.
        task = task._replace(support=_all(task.support, lowest))
        adapted, _ = subject.compiled(subject.near, task)

    def loss_if_all_were(label: int) -> float:
        return float(subject.loss(adapted, task._replace(query=_all(batch, label))))

    limits = np.iinfo(targets.dtype)
    present = [int(label) for label in np.unique(targets)[-MOST:]]
    losses = {label: loss_if_all_were(label) for label in present}
    beyond = loss_if_all_were(int(limits.max))
    if np.isnan(beyond):
        bad = [label for label in present if np.isnan(losses[label])]
        # All of them NaN is another illness, for another check.
        return bad if len(bad) < len(present) else [], "it would be NaN"
    same = [label for label in present if losses[label] == beyond]
    none = limits.min < 0 and loss_if_all_were(int(limits.min)) == beyond
    if none:
        return same, "such an example would count for nothing, in silence"
    # Taken for the last class: that class alone is rightly like it.
    clamped = len(same) > 1 and len(same) < len(present)
    return same[1:] if clamped else [], "it would be taken for the last class, in silence"
