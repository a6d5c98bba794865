"""CLIP models and their weights, text embeddings, and one region encoder per kind of image tower."""
