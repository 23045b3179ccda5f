"""A query to ranked hits: terms, filters, one query vector, search, near copies, relevance, classification."""
