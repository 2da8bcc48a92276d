"""Questions to experiments: arms that differ in a few keys, trained with the same seeds."""
