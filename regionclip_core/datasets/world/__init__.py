"""The embedded world: images, captions and boxes drawn by a program, with no download."""
