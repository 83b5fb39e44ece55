"""Random JSON schemas and grammars, and what their outputs have to be."""
