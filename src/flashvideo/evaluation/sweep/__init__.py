"""Settings tried against one another: a grid, its runs, what they cost, tables and plots."""
