"""From a row to the list of an answer."""
