"""Two members compare a column each: rows of a dataset, one session at a time, and what was learnt."""
