"""A search answered by a running `imret serve`: found, asked, bounded. Loads neither numpy nor torch."""
