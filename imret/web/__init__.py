"""`imret serve`: the search page and the HTTP API over a store, in one local process."""
