"""Models written against secure sums: boosted trees, logistic regression, a small MLP."""
