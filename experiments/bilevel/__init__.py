"""Other bilevel problems."""
