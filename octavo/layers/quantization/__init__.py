"""How matrices are stored: one scheme per file."""
