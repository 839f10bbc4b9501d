"""The command that searches: from its arguments to the end of a search."""
