"""Import and export of other projects' files of weights."""
