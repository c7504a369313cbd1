"""Training: one recipe file per model, a generic loop, and one task module per objective."""
