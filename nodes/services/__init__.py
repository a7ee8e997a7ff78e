"""What a node answers: to other members over mutual TLS, to its own people over a Unix socket."""
