"""The checks of ``metajax.check_learner``: what a learner returns, and what that depends on.

Each is a function of a subject, and returns whether it passed and a sentence.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from metajax import trees
from metajax.check import _invariances as invariances
from metajax.check._labels import labels
from metajax.check._perturb import alike, changed, labelled, parts, sameness
from metajax.check._subject import Seen, Subject
from metajax.check.gradients import check_gradient
from metajax.errors import ArgumentError, CheckError
from metajax.keys import query_key
from metajax.learners.base import adapt_to, task_outcome
from metajax.types import Episode


def init(subject: Subject) -> Seen:
    params, fixed = subject.params, []
    of_parameters = trees.selected(jax.tree.map(lambda _: 0.0, params), None)
    leaves = jax.tree.leaves(params), jax.tree.leaves(of_parameters)
    for path, leaf, learned in zip(trees.leaf_paths(params), *leaves, strict=True):
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            return False, f"init returns a {type(leaf).__name__} as leaf {path!r}, not an array"
        if not learned:
            fixed.append(path)
            continue
        if not trees.is_floating(leaf):
            return False, (
                f"leaf {path!r} is {leaf.dtype}, which has no gradient; let the loss close over it"
            )
        if not bool(jnp.isfinite(leaf).all()):
            return False, f"leaf {path!r} has a NaN or an infinity"
    count = len(leaves[0]) - len(fixed)
    if not count:
        return False, "there is no parameter to learn"
    others = f"; no parameters, so neither adapted nor learned: {', '.join(fixed)}" if fixed else ""
    return True, f"leaves: {count}{others}"


def adapt(subject: Subject) -> Seen:
    task, learner = subject.tasks[0], subject.learner
    found = jax.eval_shape(lambda p, task: adapt_to(learner, p, task), subject.params, task)
    if not (isinstance(found, tuple) and len(found) == 2 and hasattr(found[1], "loss")):
        return False, "adapt must return (adapted, info) with an info like metajax.AdaptInfo"
    adapted, info = found
    if jax.tree.structure(adapted) == jax.tree.structure(subject.params):
        like = zip(jax.tree.leaves(adapted), jax.tree.leaves(subject.params), strict=True)
        for path, (new, old) in zip(trees.leaf_paths(adapted), like, strict=True):
            # Of a leaf that each inner step has a row of, the last step's row is left.
            same = new.shape in (old.shape, old.shape[1:])
            if not (same and new.dtype == old.dtype):
                return False, (
                    f"leaf {path!r} becomes {new.dtype}{list(new.shape)} by adaptation and was "
                    f"{old.dtype}{list(old.shape)}"
                )
    observed = jax.eval_shape(
        lambda p, task: adapt_to(learner, p, task, observe=lambda adapted: jnp.zeros(())),
        subject.params,
        task,
    )[1].observed
    if getattr(observed, "shape", None) != (len(info.loss) + 1,):
        return False, (
            "with observe=, info.observed must have a row before the first and after every step, "
            f"{len(info.loss) + 1} in all, for evaluate's curve; it is {observed}"
        )
    return True, f"inner steps: {len(info.loss)}"


def loss(subject: Subject) -> Seen:
    def of(params, episode):
        adapted, _ = adapt_to(subject.learner, params, episode)
        return subject.learner.loss(adapted, episode)

    found = jax.eval_shape(of, subject.params, subject.tasks[0])
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        return False, (
            "loss must return (loss, metrics) with a dict, which may be empty; got "
            f"{type(found).__name__}"
        )
    value, metrics = found
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        return (
            False,
            f"loss must be a floating-point scalar, got {value}; average over the examples",
        )
    return True, f"metrics beside it: {', '.join(metrics) or 'none'}"


def data(subject: Subject) -> Seen:
    task = subject.tasks[0]
    for name, batch in (("support", task.support), ("query", task.query)):
        found = sameness(batch)
        if found:
            return False, f"the {name} set's {found}: pass a task as in training"
    return True, "the examples differ"


def finite(subject: Subject) -> Seen:
    gradient, _ = subject.first_gradient
    losses = [float(subject.compiled(subject.params, task)[1]) for task in subject.tasks]
    if not np.isfinite(losses).all():
        return False, f"the loss after adaptation is {losses} on three tasks"
    for path, leaf in zip(trees.leaf_paths(gradient), jax.tree.leaves(gradient), strict=True):
        bad = int((~jnp.isfinite(leaf)).sum())
        if bad:
            return False, (
                f"the loss is finite, and its meta-gradient isn't: {bad} of {leaf.size} elements "
                f"of leaf {path!r}; look for a square root, norm, logarithm or division at zero"
            )
    return True, f"mean loss {np.mean(losses):.4g}"


def _depends(subject: Subject, episode: Episode, *, on_adapted: bool) -> tuple[bool, bool, str]:
    """Whether another episode gives other adapted parameters, and another loss; and a remark."""
    for params, remark in (
        (subject.params, ""),
        (subject.near, ", though not just at these parameters (zeros among them?)"),
    ):
        before, after = (subject.compiled(params, e) for e in (subject.tasks[0], episode))
        adapts, counts = not alike(before[0], after[0]), not alike(before[1], after[1])
        if counts and (adapts or not on_adapted):
            return adapts, counts, remark
    return adapts, counts, ""


def support(subject: Subject, part: str = "all") -> Seen:
    task = subject.tasks[0]
    other = parts(task.support, subject.key(4)).get(part)
    what = "another support set" if part == "all" else f"other {part} in the support set"
    if other is None:
        return None, f"the support set has no {part} that can be told apart and changed"
    adapts, counts, remark = _depends(subject, task._replace(support=other), on_adapted=True)
    if not adapts:
        return False, (
            f"{what} leave{'s' if part == 'all' else ''} the adapted parameters as they are: the "
            "loss of the inner loop ignores "
            + ("its batch, or no step is taken" if part == "all" else f"the {part}")
        )
    if not counts:
        return False, f"{what} changes what is adapted, but not the query loss, which ignores it"
    return True, f"{what}: another loss{remark}"


def query(subject: Subject, part: str = "all") -> Seen:
    task = subject.tasks[0]
    other = parts(task.query, subject.key(5)).get(part)
    what = "another query set" if part == "all" else f"other {part} in the query set"
    if other is None:
        return None, f"the query set has no {part} that can be told apart and changed"
    _, counts, remark = _depends(subject, task._replace(query=other), on_adapted=False)
    if not counts:
        return False, f"{what}: the loss stays as it is, so it doesn't score the query set" + (
            "" if part == "all" else f" by its {part}"
        )
    return True, f"{what}: another loss{remark}"


def adapted_matters(subject: Subject) -> Seen:
    task = subject.tasks[0]
    adapted, before = subject.compiled(subject.params, task)
    other = changed(adapted, subject.key(6), 0.1, integers=False)
    if alike(subject.loss(adapted, task), subject.loss(other, task)):
        return False, (
            "the query loss is the same for other adapted parameters: it uses others, such as the "
            f"initial ones, that it closes over (it is {float(before):.4g})"
        )
    return True, "other adapted parameters: another loss"


def predict(subject: Subject) -> Seen:
    task, learner = subject.tasks[0], subject.learner
    if learner.predict is None:
        return None, "it has no predict"
    if not labelled(task.query):
        return None, "inputs and targets can't be told apart"
    options = {"key": query_key(task)} if learner.keyed else {}
    adapted, _ = adapt_to(learner, subject.params, task)
    try:
        outputs = learner.predict(adapted, task.support, task.query[0], **options)
    except ArgumentError as error:
        return None, str(error)
    _, metrics = learner.loss(adapted, task)
    targets = task.query[1]
    classes = jnp.ndim(outputs) == 2 and jnp.issubdtype(targets.dtype, jnp.integer)
    if not classes or "accuracy" not in metrics or getattr(task.query, "mask", None) is not None:
        return True, f"outputs of shape {jnp.shape(outputs)}"
    right = float(jnp.mean(outputs.argmax(axis=-1) == targets))
    if abs(right - float(metrics["accuracy"])) > 1e-6:
        return False, (
            f"predict has an accuracy of {right:.4g}, and the loss reports "
            f"{float(metrics['accuracy']):.4g}"
        )
    return True, f"outputs of shape {jnp.shape(outputs)}, as accurate as the loss reports"


def gradient(subject: Subject) -> Seen:
    found, _ = subject.first_gradient
    leaves = dict(zip(trees.leaf_paths(found), jax.tree.leaves(found), strict=True))
    shapes = map(jnp.shape, jax.tree.leaves(subject.params))
    wanted = dict(zip(trees.leaf_paths(subject.params), shapes, strict=True))
    for path, leaf in leaves.items():
        if leaf.shape != wanted[path]:
            return False, f"leaf {path!r} has a gradient of shape {leaf.shape}, not {wanted[path]}"
    zero = [path for path, leaf in leaves.items() if not bool(jnp.any(leaf != 0))]
    if len(zero) == len(leaves):
        return False, (
            "the meta-gradient is exactly zero everywhere: a stop_gradient, a rounding or an "
            "argmax lies between the parameters and the loss"
        )
    if zero:
        return True, f"exactly zero in {', '.join(map(repr, zero))}: the loss doesn't use them here"
    return True, "no leaf's is all zero"


def finite_differences(subject: Subject) -> Seen:
    if subject.learner.gradient is not None:
        return None, "the learner has a gradient of its own, which need not be its loss's"
    outcome = task_outcome(subject.learner)
    try:
        slopes = check_gradient(
            lambda params, episode: outcome(params, episode)[0],
            subject.near,
            subject.tasks[0],
            seed=subject.seed,
        )
    except CheckError as error:
        return False, (
            f"{error} (A first-order learner's do: skip=('finite differences',) leaves this out.)"
        )
    return True, f"in float64, {len(slopes)} comparisons agree"


CHECKS: dict[str, Callable[[Subject], Seen]] = {
    "init": init,
    "adapt": adapt,
    "loss": loss,
    "data": data,
    "labels": labels,
    "finite": finite,
    "support": support,
    "support targets": functools.partial(support, part="targets"),
    "query": query,
    "query targets": functools.partial(query, part="targets"),
    "adapted": adapted_matters,
    "predict": predict,
    "gradient": gradient,
    "jit": invariances.jit,
    "vmap": invariances.vmap,
    "chunks": invariances.chunks,
    "tasks": invariances.tasks,
    "examples": invariances.examples,
    "classes": invariances.classes,
    "padding": invariances.padding,
    "float32": invariances.float32,
    "bfloat16": invariances.bfloat16,
    "retrace": invariances.retrace,
    "determinism": invariances.determinism,
    "improvement": invariances.improvement,
    "finite differences": finite_differences,
}

ON_DATA = frozenset(
    {"finite", "support", "support targets", "query", "query targets", "adapted", "gradient"}
    | {"improvement", "finite differences"}
)
"""What may fail through data that tell nothing, such as zeros."""

ESSENTIAL = frozenset({"init", "adapt", "loss"})
"""Where one of these fails, the others have nothing to run."""
