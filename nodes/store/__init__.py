"""What a node keeps: SQLite holds the truth; sealed lists of others are LMDB."""
