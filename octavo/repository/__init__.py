"""The reading room: which models are declared, which versions are loaded, and who gets a request of a given name."""
