"""What the page asks: a task's adaptation and the query's probabilities, as one XLA program."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fewshot.playground.models import MOST, SIZE, Name, Trained
from metajax import losses
from metajax.learners import Learner
from metajax.types import MaskedBatch, Params


def answer_of(learners: Mapping[Name, Learner]) -> Callable[..., dict[str, jax.Array]]:
    """``answer(params, examples, count, query)``: each learner's probabilities of the classes.

    One program serves two to five classes: those from ``count`` on are padding, which MAML's loss,
    the normalisation and the softmax leave out.

    Args:
        learners: by name; ``params`` has their meta-parameters by the same names.

    Returns:
        A pure function of ``params``, drawings ``examples [5, 28, 28]`` (ink = 255 on 0), one of
        each class, ``count`` of which are there, and one drawing ``query [28, 28]``. It returns for
        each learner ``[inner steps + 1, 5]``: before the first and after every inner step.
    """

    def answer(
        params: Mapping[Name, Params], examples: jax.Array, count: jax.Array, query: jax.Array
    ) -> dict[str, jax.Array]:
        classes = jnp.arange(MOST) < count
        support = MaskedBatch(_inputs(examples), jnp.arange(MOST), classes, classes)

        def probabilities(learner: Learner, params: Params) -> jax.Array:
            def observe(adapted: Params) -> jax.Array:
                assert learner.predict is not None
                logits = learner.predict(adapted, support, _inputs(query[None]))[0]
                return jax.nn.softmax(jnp.where(classes, logits, losses.lowest(logits.dtype)))

            return learner.adapt(params, support, observe=observe)[1].observed

        return {name: probabilities(learners[name], params[name]) for name in learners}

    return answer


def _inputs(drawings: jax.Array) -> jax.Array:
    """Drawings as the networks were trained on them."""
    return drawings.astype(jnp.float32)[..., None] / 255


def compiled(models: Mapping[Name, Trained]) -> Callable[..., dict[str, np.ndarray]]:
    """``answer(examples, count, query)`` of trained models, compiled before the first question."""
    params = jax.device_put({name: each.params for name, each in models.items()})
    program = jax.jit(answer_of({name: each.learner for name, each in models.items()}))
    image = jax.ShapeDtypeStruct((SIZE, SIZE), np.uint8)
    examples = jax.ShapeDtypeStruct((MOST, SIZE, SIZE), np.uint8)
    ready = program.lower(params, examples, jax.ShapeDtypeStruct((), np.int32), image).compile()
    return lambda examples, count, query: jax.device_get(
        ready(params, examples, np.int32(count), query)
    )
