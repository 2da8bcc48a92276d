"""What `python -m chns_jax.bench` measures: one file for each group of rows."""
