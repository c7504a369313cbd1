"""Comparisons of systems: as data, Markdown, plots and one HTML file."""
