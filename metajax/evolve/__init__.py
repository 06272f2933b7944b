"""A language model that evolves itself: θ_{t+1} = f(θ_t, D_t), with D_t the tasks it made."""
