"""Who a node is: its keys, its certificate, and the CA-signed list of members."""
