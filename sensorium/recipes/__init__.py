"""Published systems, each as a short function from a size to a Recipe."""
