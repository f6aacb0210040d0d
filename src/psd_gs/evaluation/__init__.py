"""Are the assets any good, and is one method better than another? Suites, scores, budgets, paired statistics."""
