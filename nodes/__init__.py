"""An institution's node: services, storage, policy, identity and command line."""
