"""Teacher, pseudo labels, region-text pairs, the losses, the student."""
