"""String rules that a language model adapts to."""
