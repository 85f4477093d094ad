"""What an experiment found: results as JSON, text and one self-contained page, and comparisons of two of them."""
