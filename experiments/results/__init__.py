"""The tables of docs/results."""
