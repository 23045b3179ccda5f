"""LEARN: labelled pictures, or a few of one thing, become concepts that searches ask by, in seconds.

discriminant.py      directions of categories in the joint space, in closed form
cross_validation.py  how much the covariance is shrunk, and how much of the text stays: by held-out pictures
calibration.py       scores of concepts to probabilities
learn.py             examples to concepts and a report of what they are worth
from_training.py     concepts of an evaluation's training pictures
examples.py          pictures of folders and collections, embedded, each once
"""
