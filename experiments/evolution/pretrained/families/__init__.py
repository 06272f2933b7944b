"""Families of tasks in plain text, whose answers a program checks."""
