"""A search answered by a running `imret serve`: found and asked. Loads neither numpy nor torch."""
