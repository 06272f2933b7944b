"""Facts about invented people, from passages into the weights."""
