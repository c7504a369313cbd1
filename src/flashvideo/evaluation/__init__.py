"""Measuring what the models make: figures of frames (`metrics`) and what a procedural video shows (`readers`)."""
