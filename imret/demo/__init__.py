"""A drawn data set of ten categories whose every attribute is known: a first run with nothing to download.

    write_dataset(folder, train=1000, test=200)     folders of JPEGs with captions and attributes
    category_queries(), attribute_queries()         what to ask, and which pictures answer

Both are in `dataset`. What it hides: the drawing (`draw`, `pen`, `scenes`; the subjects are in `vertebrates`,
`invertebrates` and `plants_and_fungi`), how pictures vary, and how they are put into words (`words`).
"""
