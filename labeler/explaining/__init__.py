"""Explaining: which words and which parts of a picture a score depends on, and the pictures of that."""
