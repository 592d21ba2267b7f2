"""Causal depthwise convolution along time."""
