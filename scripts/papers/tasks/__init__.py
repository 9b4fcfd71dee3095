"""Tasks of the studies, beside those of the zoo."""
