"""Flower's two applications. Flower launches, configures and reports; the sums run over the aggregation service.

One train message opens one stream per party, because a round through Flower costs seconds. Run configuration and
messages are not trusted: they name a job by its descriptor, and a party takes part in what it has approved.
"""
