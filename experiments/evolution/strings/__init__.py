"""Strings of digits."""
