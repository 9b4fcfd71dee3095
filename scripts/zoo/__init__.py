"""A small zoo of real language models: one base and the specialists fine-tuned from it."""
