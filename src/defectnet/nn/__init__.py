"""Building blocks of networks, in plain torch."""
