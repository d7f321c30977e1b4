"""Training: data to classifier folder."""
