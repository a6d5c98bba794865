"""The version of the embedded world."""

WORLD_VERSION = 1
"""Raised with any change of pixels, captions or boxes for the same arguments; part of every image's seed and of the
fingerprint of the stage `data`."""
