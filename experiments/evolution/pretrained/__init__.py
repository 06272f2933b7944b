"""A Hugging Face model and sums."""
