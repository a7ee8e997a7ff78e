"""Vertical jobs at a node: aligned rows, the two seats, the relay between them, and joint scores."""
