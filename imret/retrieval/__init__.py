"""A query to ranked hits: terms, filters, query vector, search, near copies, relevance, classification."""
