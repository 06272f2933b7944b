"""Few-shot learning on Omniglot, beside the papers' numbers."""
