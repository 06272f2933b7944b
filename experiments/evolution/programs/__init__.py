"""Programs of a small language."""
