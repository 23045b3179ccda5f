"""Fill a collection from pictures: scan, decode, encode and store, overlapped and resumable.

Stands on `imret` and is imported by nothing in it; the two meet in a collection.
"""
