"""The tools: operations on tensors. `ops` is the page to read; it knows no model, layer or request."""
