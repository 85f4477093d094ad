"""The comparison of stores."""
