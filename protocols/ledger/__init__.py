"""The transparency log's formats and decisions, without disk, network or clock.

notes        signed notes                      (C2SP signed-note v1.0.0)
checkpoints  heads, cosignatures, quorum       (C2SP tlog-checkpoint v1.0.0, tlog-cosignature v1.0.1)
tiles        the tree and its entries in tiles (C2SP tlog-tiles v0.1.0)
witnessing   what a witness signs and refuses  (C2SP tlog-witness v1.0.0)
proofs       one entry's offline proof         (C2SP tlog-proof, commit ab17a74)
events       leaves, salted commitments, receipts
"""
