"""Learning together: models, secure sums and Flower applications live in this room.

Nothing here yet imports from `nodes`; it may use `protocols` and `lianfang.v1`.
"""
