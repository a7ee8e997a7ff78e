"""Contracts: what this node has agreed on with others, how that stands, and telling each other."""
