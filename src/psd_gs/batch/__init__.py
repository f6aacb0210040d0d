"""Many prompts: one run folder each, on the workers of one machine or of a Ray cluster."""
