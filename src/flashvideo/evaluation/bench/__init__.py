"""Speed and memory of a model's phases, beside the plainest implementation of the same computation."""
