"""fit(): the loop, optimisers, sampling, checkpoints, several processes."""
