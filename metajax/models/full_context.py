"""Full-context embeddings of Matching Networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from metajax.errors import ArgumentError
from metajax.losses import lowest


class FullContext(nn.Module):
    """Embeds the support set as a sequence, and the query with attention to it.

    The support features pass through a bidirectional LSTM, whose two outputs are added to them. An
    LSTM reads each query's features ``steps`` times. Its hidden state is its last output plus the
    features, plus a mean of the support embeddings that is weighted by attention.

    Attributes:
        features: width d of the features.
        steps: how many times a query is read.

    Example:
        >>> support, query = jnp.zeros((5, 8)), jnp.zeros((3, 8))
        >>> init = FullContext(8).init_with_output
        >>> (g, f), _ = jax.eval_shape(init, jax.random.key(0), support, query)
        >>> g.shape, f.shape
        ((5, 8), (3, 8))

    Source: Vinyals et al. 2016 (arXiv 1606.04080), appendix A.
    """

    features: int
    steps: int = 5

    masked = True

    @nn.compact
    def __call__(
        self, support: jax.Array, query: jax.Array, *, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The embeddings of ``support [n, d]`` and ``query [m, d]``, of the same shapes.

        With ``mask [n]``, what is False there is padding: neither read nor attended to.
        """
        for name, given in (("support", support), ("query", query)):
            if given.ndim != 2 or given.shape[1] != self.features:
                raise ArgumentError(
                    f"{name} must be features [examples, {self.features}], got shape {given.shape}."
                )
        sequence, lengths, place = support, None, slice(None)
        if mask is not None:  # an RNN expects padding at the end
            order = jnp.argsort(~mask, stable=True)
            sequence, lengths, place = support[order], mask.sum()[None], jnp.argsort(order)

        def read(name: str, **how: Any) -> jax.Array:
            layer = nn.RNN(nn.LSTMCell(self.features), name=name, **how)
            return layer(sequence[None], seq_lengths=lengths)[0][place]

        there, back = read("forward"), read("backward", reverse=True, keep_order=True)
        embedded = support + there + back

        cell = nn.LSTMCell(self.features, name="attending")
        hidden = query
        memory = jnp.zeros_like(query)
        for _ in range(self.steps):
            scores = hidden @ embedded.T
            if mask is not None:
                scores = jnp.where(mask, scores, lowest(scores.dtype))
            attended = jax.nn.softmax(scores, axis=-1) @ embedded
            # The cell's input is the query; the mean is added to its hidden state.
            (memory, output), _ = cell((memory, hidden + attended), query)
            hidden = output + query
        return embedded, hidden
