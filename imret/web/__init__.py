"""The search page and the REST API that `imret serve` offers."""
