"""Training data: the procedural captioned world, and its uncaptioned natural-statistics companion."""
