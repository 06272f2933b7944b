"""Forms of an operation that are needed for speed alone.

``metajax.models.Conv`` chooses among them in one function, ``metajax.models.conv._form``; what
they compute is the same.

``patches``
    Patches of the image times the kernel as a matrix. Taken wherever nothing below is. A
    convolution that is ``vmap``ped over its kernel becomes a grouped convolution, which XLA runs
    slowly (jax-ml/jax issue 13800); a product of matrices becomes a batched one, which is fast. On
    a CPU one operand enters transposed, because its derivatives are then faster.
``winograd``
    Winograd's F(2×2, 3×3) as three primitives that are each other's derivatives. Taken on a CPU for
    3×3 kernels of stride 1 with ``"SAME"`` padding, in float32 or float64, with at least
    ``winograd.CHANNELS`` channels and features. Examples are computed in parts of
    ``winograd.TILE_BYTES``, which stay in the CPU's cache. Not for arrays on a mesh with explicit
    axes: the primitives have no rule for the sharding in an array's type.

XLA's own convolution is taken only where ``algorithm="direct"`` asks for it.
"""
