"""Gates: bounds that lists must meet before they go live. All are rows of `table.KINDS`."""
