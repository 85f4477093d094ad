"""Events: writing, shipping and counting them."""
