"""Primitives, and forms of an operation that one backend alone needs."""
