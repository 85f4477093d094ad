"""How good lists are: splits of the data, metrics of lists, and models held against baselines on one split."""
