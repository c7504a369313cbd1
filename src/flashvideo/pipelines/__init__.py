"""The two stages as diffusers pipelines, each alone and both together."""
