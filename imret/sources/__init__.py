"""Sources: the folders that a collection was filled from.

What is on disk of them (`presence`), how they lie to each other (`overlap`), what a collection holds of each
and how that gets another place or goes (`stored`), and which of them has moved (`moved`). Every picture of
theirs that is shown, copied or compared is opened by `opened`, which trusts no payload (`safe_open`): from a
bucket only below a URL that was named (`named_roots`), out of a tar by its offset (`members`), out of a
Parquet file by its key (`parquet_rows`).
"""
