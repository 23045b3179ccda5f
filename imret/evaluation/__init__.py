"""JUDGE: labelled pictures and a model become figures that can be compared.

pictures.py     labelled pictures, embedded by one model
queries.py      what is asked: sentences for categories, captions
scores.py       embeddings and rankings to figures
differences.py  every system on the same resampled pictures: intervals
retention.py    captioned pictures: what a model has kept
baselines.py    what can be had without tuning
report.py       `evaluate`: a folder
collection.py   `evaluate_collection`: through an index, and exactly
table.py        the report for a terminal
page.py         the report as one HTML file
cli.py          `imret evaluate`
"""
