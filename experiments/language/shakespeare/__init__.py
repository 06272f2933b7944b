"""A language model of characters, on the plays of Shakespeare."""
