"""Three small tasks on procedural items: math, code and instruct."""
