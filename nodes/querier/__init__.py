"""The querier's side: copies of others' sealed lists, and questions."""
