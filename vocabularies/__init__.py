"""Class names of the public data sets, and what reads them."""
