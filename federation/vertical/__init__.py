"""Learning on two and more institutions' columns about the same rows; needs the `vertical` extra."""
