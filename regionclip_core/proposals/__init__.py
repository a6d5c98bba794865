"""The proposal network and its training, the other proposers, recall."""
