"""JUDGE: labelled pictures and a model become figures that can be compared.

pictures.py    labelled pictures, embedded by one model
scores.py      embeddings and rankings to figures; differences with intervals
retention.py   captioned pictures: what a model has kept
baselines.py   what can be had without tuning
report.py      `evaluate` and `evaluate_collection`
page.py        the report as one HTML file
cli.py         `imret evaluate`
"""
