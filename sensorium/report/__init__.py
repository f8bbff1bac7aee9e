"""Reports: what a run, an evaluation and a comparison leave for a person."""
