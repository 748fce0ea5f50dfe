"""A shop that sells a small stock to a crowd: the application of the tutorial. Start it with `python -m flash_sale`."""
