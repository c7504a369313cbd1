"""Training data: the procedural captioned world, its natural-statistics companion, and clips of one's own."""
