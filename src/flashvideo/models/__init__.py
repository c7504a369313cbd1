"""The diffusion transformer and the conversion of reference checkpoints."""
