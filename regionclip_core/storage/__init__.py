"""Folders at any fsspec URL, records and manifests, fingerprints, Arrow tables, tars."""
