"""lm-eval tasks that come with mergefront."""
