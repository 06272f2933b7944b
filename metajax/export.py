"""Adaptation and prediction as one program, which runs where neither the model nor metajax is."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from metajax import _checks, keys
from metajax.errors import ArgumentError
from metajax.learners import Learner, adapt_to
from metajax.types import Batch, Episode, MaskedBatch, Params, PyTree


def export(
    learner: Learner,
    params: Params,
    support: PyTree,
    inputs: PyTree,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    any_number: bool = True,
) -> jax.export.Exported:
    """Compiles "adapt to a support set, then predict" into one program that can be saved.

    The program holds the parameters. ``jax.export`` keeps it as StableHLO, so that a process with
    JAX alone loads and calls it, without metajax and the model's code. Convolutions have the form
    that is fastest where the program is made: to serve on a GPU, make it there, or of a network
    with ``convolution="direct"``.

    Args:
        learner: the algorithm, with a ``predict``.
        params: its meta-parameters, such as ``state.params`` of the trainer.
        support: a support set of the shapes and types that the program will be called with; arrays
            or ``jax.ShapeDtypeStruct``. Each leaf is fixed in shape.
        inputs: query inputs, each leaf ``[examples, ...]``, likewise.
        platforms: where the program can run: ``"cpu"``, ``"cuda"``, ``"rocm"``, ``"tpu"``.
        any_number: whether the program takes any number of query inputs (and compiles once for
            each); otherwise only as many as ``inputs`` has.

    Returns:
        A ``jax.export.Exported``. Its ``call(support, inputs)`` returns what ``learner.predict``
        returns; of a keyed learner, ``call(support, inputs, key)`` with the key's data, uint32
        ``[2]`` (``jax.random.key_data``). A ``Batch`` is a plain tuple there, ``(inputs,
        targets)``, and a ``MaskedBatch`` one of its four parts. ``serialize()`` gives the
        program's bytes (with the extra ``export``), and ``jax.export.deserialize`` reads them, in
        this version of JAX and in those of the next six months.

    Raises:
        ArgumentError: if the learner has no ``predict``, ``platforms`` is empty or names an unknown
            one, or ``inputs`` has no leading axis of examples.

    Example:
        >>> import metajax, numpy as np
        >>> learner = metajax.prototypical(lambda params, x: x * params, n_way=2)
        >>> support = metajax.Batch(jnp.array([[0.0], [4.0]]), jnp.array([0, 1]))
        >>> program = export(learner, jnp.ones(()), support, jnp.zeros((1, 1)))
        >>> shots, labels = np.array([[0.0], [10.0]], np.float32), np.array([0, 1], np.int32)
        >>> queries = np.array([[1.0], [9.0], [8.0]], np.float32)
        >>> program.call((shots, labels), queries).argmax(axis=-1)
        Array([0, 1, 1], dtype=int32)

    Source: https://docs.jax.dev/en/latest/export/export.html
    """
    predict = learner.predict
    if predict is None:
        raise ArgumentError(
            "learner has no predict, so there is nothing to export: build it with predict=."
        )
    known = ("cpu", "cuda", "rocm", "tpu")
    if isinstance(platforms, str) or not platforms or set(platforms) - set(known):
        raise ArgumentError(
            f"platforms must be a sequence of some of {', '.join(known)}, got {platforms!r}."
        )
    for leaf in jax.tree.leaves(inputs):
        if not jnp.shape(leaf):
            raise ArgumentError(
                f"inputs must have a leading axis of examples, got {_checks.shown(leaf)}."
            )

    def adapt_and_predict(support: PyTree, inputs: PyTree, key_data: Any = None) -> PyTree:
        key = None if key_data is None else jax.random.wrap_key_data(key_data, impl="threefry2x32")
        episode = Episode(rebuild(support), None, key)
        adapted, _ = adapt_to(learner, params, episode)
        options = {} if key is None else {"key": keys.query_key(episode)}
        return predict(adapted, episode.support, inputs, **options)

    kind = type(support)
    labelled = isinstance(support, Batch | MaskedBatch)
    rebuild = (lambda parts: kind(*parts)) if labelled else (lambda parts: parts)
    examples = jax.export.symbolic_shape("queries") if any_number else ()
    arguments = [
        jax.tree.map(_like, tuple(support) if labelled else support),
        jax.tree.map(lambda leaf: _like(leaf, *examples), inputs),
    ]
    if learner.keyed:
        arguments.append(jax.ShapeDtypeStruct((2,), jnp.uint32))
    return jax.export.export(jax.jit(adapt_and_predict), platforms=tuple(platforms))(*arguments)


def _like(leaf: Any, *leading: Any) -> jax.ShapeDtypeStruct:
    """The shape and type of an array, with another first axis if one is given."""
    shape = (*leading, *jnp.shape(leaf)[len(leading) :])
    return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))
