"""Places: what a name opens, be it a path of this machine or a URL of an object store.

    names.py         which name is a URL, its canonical form, brace patterns
    stores.py        s3://, gs:// and az:// through pyarrow's file systems; their errors in words
    reading.py       ranged reads that are tried again from where they failed, with patience
    listing.py       all that lies below a folder or prefix, listed in parallel, in order, in flat memory
    spool.py         a container's bytes on this machine: its own file, or a copy while it is read
    tar.py           the members of a tar file, where they begin, and what is wrong with it
    parquet_rows.py  the rows of a Parquet file that holds pictures

What the bytes mean is decided above: `imret.datasets.shards` makes pictures of them.
"""
