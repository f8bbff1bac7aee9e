"""Designs under one budget: the same data in the same order, the same language model, the same questions."""
