"""Explaining: which words and which parts of a picture a score hangs on, and the pictures of that."""
