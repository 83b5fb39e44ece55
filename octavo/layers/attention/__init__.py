"""Attention: what a layer asks (`backend`), the layer itself (`layer`), and backends named after what they do."""
