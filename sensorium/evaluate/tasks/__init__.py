"""Where questions come from: the published formats, a folder or JSONL file of a user, and the built-in sets."""
