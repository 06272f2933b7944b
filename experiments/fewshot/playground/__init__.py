"""A page to draw on: a few classes, one drawing each, and what two learners make of another one."""
