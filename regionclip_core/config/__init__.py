"""The typed config tree: its sections, checks between them, loading, and errors that name the place."""
