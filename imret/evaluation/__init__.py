"""JUDGE: labelled pictures and a model become figures that can be compared.

dataset.py       labelled pictures and captions, embedded by one model
metrics.py       what a ranking is worth, on arrays
scores.py        embeddings and rankings to the figures of a report
bootstrap.py     resampled pictures, intervals
significance.py  every system on the same resampled pictures: differences and their intervals
retention.py     captioned pictures: what a model has kept
baselines.py     what can be had without tuning
fitted.py        training pictures to rows: every baseline, and concepts
evaluate.py      `evaluate`: a folder
benchmark.py     published benchmarks, as their own programs score them: judged lists, captions
index_error.py   `evaluate_collection`: through an index, and exactly
report.py        what both return, and its JSON
benchmark_report.py  what a benchmark found, its JSON and its text
text_report.py   a report for a terminal
html_report.py   a report as one HTML file, with the drawings of plots.py
"""
