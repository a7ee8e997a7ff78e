"""A federation on a laptop: the same members, learners and Flower applications as in deployment.

config    what to simulate, as options or a TOML file
arms      local, federated and pooled models of one seed
engines   inline (one process) and ray (Flower's simulation engine)
report    tidy Parquet, JSON, plots, one HTML page
"""
