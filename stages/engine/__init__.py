"""Plans a run, does it and commits it: in this process or on Ray."""
