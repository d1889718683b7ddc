"""Rows on their way through ingest: from a source's fields to record lines, splits that leak nothing, and a profile."""
