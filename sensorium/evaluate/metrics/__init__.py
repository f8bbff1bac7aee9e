"""Metrics, each equal to its reference implementation."""
