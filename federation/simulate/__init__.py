"""A federation on a laptop: the same members, learners and Flower applications as in deployment.

config    what to simulate, as options or a TOML file
arms      local, federated and pooled models of one seed
engines   which engine, and the one in this process
flower    Flower's simulation engine on Ray, in a process of its own
report    tidy Parquet, JSON, plots, one HTML page
"""
