"""The search page and its API: `imret serve`."""
