"""Stories with given words, by a small model of stories."""
