"""Exact statistics of causal attention's weights, without the matrix of them."""
