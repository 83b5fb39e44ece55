"""What octavo makes of a GPU: `python -m benchmarks.gpu`. Begin with `parts`."""
