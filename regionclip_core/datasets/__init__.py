"""Where images, captions and boxes come from: one file per source, the index, decoding, vocabularies."""
