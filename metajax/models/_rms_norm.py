"""RMSNorm with its parameter stored as the difference to one."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class RMSNormPlusOne(nn.Module):
    """``x / rms(x) * (1 + scale)``, computed in float32 at least, as Gemma has it.

    A parameter near zero has more bits left, in bfloat16, than one near one.

    Attributes:
        epsilon: added to the mean of squares.
        dtype: dtype of the result.

    Example:
        >>> x = jnp.array([3.0, 4.0])
        >>> y, variables = RMSNormPlusOne().init_with_output(jax.random.key(0), x)
        >>> round(float((y**2).mean()), 4), variables["params"]["scale"].tolist()
        (1.0, [0.0, 0.0])
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        x = x.astype(wide)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * (1 + scale.astype(wide))).astype(self.dtype)
