"""The demonstration network: its configuration, its made-up story, and the play."""
