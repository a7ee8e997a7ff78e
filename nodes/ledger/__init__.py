"""The node's transparency log, its part as a witness, and its copies of others' logs.

mark         what must never go back, in a file that no backup restores
book         the log itself, in `node.db`: events, ticks, tiles, heads
witness      cosigning others' heads
publisher    ticks, and cosignatures for this node's heads
mirrors      copies of others' logs, what they prove, and what contradicts them
web          log and witness over HTTPS (tlog-tiles, tlog-witness)
client       reading others' logs and asking their witnesses
reconcile    both sides' events side by side
bundle       the evidence of one case in one file, made and verified
service      the gRPC services: events for a peer, and the node's own people
"""
