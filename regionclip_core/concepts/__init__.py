"""From captions to the concept pool."""
