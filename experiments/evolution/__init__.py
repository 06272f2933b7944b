"""Language models that teach themselves."""
