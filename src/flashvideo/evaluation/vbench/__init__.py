"""VBench: its prompts, its runs in an environment of its own, its results and totals."""
