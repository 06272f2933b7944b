"""iMAML: the meta-gradient from where adaptation ended, not from its path."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from metajax import _checks, keys, trees
from metajax.errors import ArgumentError
from metajax.learners.base import Learner, OuterLoss, adapt_to
from metajax.learners.gradient import gradient_learner
from metajax.modes import first_order
from metajax.types import LossFn, PyTree

Solver = Literal["cg", "neumann"]


def imaml(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    proximal: float,
    solver: Solver = "cg",
    solver_steps: int = 5,
    damping: float = 0.0,
    trainable: trees.Trainable = None,
    outer_loss: OuterLoss | None = None,
    select: Callable[..., PyTree] | None = None,
    predict: Callable[..., Any] | None = None,
) -> Learner:
    """iMAML: φ ≈ argmin L_support(φ) + λ/2 ||φ − θ||², meta-gradient (I + H/λ)⁻¹ ∇L_query(φ).

    H is the Hessian of the support loss at φ. Memory doesn't depend on the number of inner steps,
    and neither does the gradient on their path; it is right where φ is the minimum. Leaves that
    don't adapt get their implicit gradient too: −(1/λ) ∂⟨∇_φ L_support, u⟩ with the solution u,
    beside their own in the query loss.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``.
        optimizer: the inner optimizer, any Optax transformation.
        steps: how many inner steps it takes towards the minimum.
        proximal: λ, positive.
        solver: ``"cg"``, conjugate gradients, or ``"neumann"``, the first terms of
            Σ_j (−H/λ)^j ∇L_query, which converge only where H/λ lies within (−1, 1).
        solver_steps: iterations of the one, terms beyond the first of the other.
        damping: what is added to H/λ's diagonal in the solver; the paper's code takes 1 for
            stability.
        trainable: which leaves adapt; see ``metajax.adapt``.
        outer_loss: as in ``metajax.maml``.
        select: ``select(support, index)``, the batch of an inner step; see ``metajax.adapt``. The
            implicit gradient is that of the whole support set.
        predict: ``predict(params, inputs)``, the network; see ``metajax.maml``.

    Returns:
        A ``Learner`` whose meta-parameters are the parameters themselves. Training reports, beside
        the loss, ``"solver_residual"``: ||(I + H/λ) u − ∇L_query|| / ||∇L_query||, which is large
        where the solver did not converge, and infinite where it diverged beyond the numbers.

    Raises:
        ArgumentError: if ``steps``, ``solver_steps`` or ``proximal`` isn't positive, ``damping`` is
            negative, the solver has another name, or ``loss_fn`` is keyed: with a random loss there
            is no minimum to differentiate at.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2) / 2
        >>> learner = metajax.imaml(loss_fn, optax.sgd(0.5), steps=20, proximal=1.0)
        >>> gradient, _ = learner.gradient(jnp.zeros(1), metajax.Episode(jnp.ones(1), jnp.ones(1)))
        >>> gradient.round(4)  # φ = (θ + 1) / 2, so that d/dθ (φ − 1)² / 2 = (φ − 1) / 2
        Array([-0.25], dtype=float32)

    Source: Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients" (arXiv 1909.04630),
    equations 3 to 6; for Neumann series, Lorraine et al. 2020 (arXiv 1911.02590).
    """
    _checks.positive_int("solver_steps", solver_steps)
    _checks.one_of("solver", solver, ("cg", "neumann"))
    proximal = _checks.positive_float("proximal", proximal)
    damping = _checks.non_negative_float("damping", damping)
    if keys.is_keyed(loss_fn):
        raise ArgumentError(
            "imaml differentiates at the minimum of the support loss, so loss_fn must not be "
            "keyed: leave dropout and noise out of it."
        )

    def build(loss_fn: LossFn) -> Learner:
        return gradient_learner(
            loss_fn,
            optimizer,
            steps=steps,
            mode=first_order(),
            trainable=trainable,
            outer_loss=outer_loss,
            select=select,
            predict=predict,
        )

    plain = build(loss_fn)

    def adapt_fn(params, support, *, observe=None, key=None):
        centre, _ = trees.partition(params, trainable)

        def proximal_loss(current, batch):
            value, aux = _checks.value_and_aux(loss_fn(current, batch), name="loss_fn")
            adapted, _ = trees.partition(current, trainable)
            distance = optax.tree.norm(optax.tree.sub(adapted, centre), squared=True)
            return value + (0.5 * proximal * distance).astype(value.dtype), aux

        return build(proximal_loss).adapt(params, support, observe=observe, key=key)

    learner = plain._replace(adapt=adapt_fn)

    def gradient(params, episode):
        solution, _ = adapt_to(learner, params, episode)
        adapted, frozen = trees.partition(solution, trainable)

        def query_loss(adapted, frozen):
            value, metrics = plain.loss(trees.combine(adapted, frozen), episode)
            return value, {"loss": value, **metrics}

        def support_gradient(adapted, frozen):
            def support_loss(adapted):
                output = loss_fn(trees.combine(adapted, frozen), episode.support)
                return _checks.value_and_aux(output, name="loss_fn")[0]

            return jax.grad(support_loss)(adapted)

        def scaled_hessian(vector):
            of_adapted = lambda a: support_gradient(a, frozen)
            product = jax.jvp(of_adapted, (adapted,), (vector,))[1]
            return optax.tree.scale(1 / proximal, product)

        def system(vector):
            total = optax.tree.add(vector, scaled_hessian(vector))
            return optax.tree.add_scale(total, damping, vector) if damping else total

        (right, by_frozen), metrics = jax.grad(query_loss, argnums=(0, 1), has_aux=True)(
            adapted, frozen
        )
        if solver == "cg":
            u, _ = jax.scipy.sparse.linalg.cg(system, right, maxiter=solver_steps, tol=0.0)
        else:

            def term(carry, _):
                vector, total = carry
                vector = optax.tree.sub(vector, system(vector))
                return (vector, optax.tree.add(total, vector)), None

            (_, u), _ = jax.lax.scan(term, (right, right), length=solver_steps)
        residual = optax.tree.norm(optax.tree.sub(system(u), right))
        size = jnp.maximum(optax.tree.norm(right), jnp.finfo(residual.dtype).tiny)
        # NaN would pass for converged in a comparison with a bound.
        metrics["solver_residual"] = jnp.where(jnp.isnan(residual), jnp.inf, residual / size)

        if jax.tree.leaves(frozen):
            _, transpose = jax.vjp(lambda f: support_gradient(adapted, f), frozen)
            (implicit,) = transpose(u)
            by_frozen = optax.tree.add_scale(by_frozen, -1 / proximal, implicit)
        return trees.combine(u, by_frozen), metrics

    return learner._replace(gradient=gradient)
