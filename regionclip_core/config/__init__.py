"""The typed config tree: its sections, what they ask of each other, loading, and errors that name the place."""
