"""Arithmetic on boxes and masks, non-maximum suppression, batches of images."""
