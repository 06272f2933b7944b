"""Timings of metajax beside other programs that compute the same thing."""
