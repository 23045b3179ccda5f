"""ADAPT: labelled pictures and a base model become a better encoder, as a model folder.

sources.py     a folder to records; validation carved off, copies on one side
manifest.py    a CSV or Parquet file to records
taxa.py        species, and the texts that name them
captions.py    category names to training captions
likeness.py    which pictures look alike: perceptual hash and colours
audit.py       copies, label conflicts, leaks
lengths.py     texts against what the text tower reads
gather.py      all of the above put together: what is trained on, and a report
report.py      that report, as a table and as JSON
data.py        records to pixels and class-balanced batches of augmented pictures
replay.py      captioned pictures of other things, shown again
models.py      what training starts from: a pretrained model, or an architecture
layers.py      which parameters are trained, and at what pace
words.py       the words that may learn: those that name categories
cut.py         an image tower below and above its topmost layer
lora.py        low-rank adapters
loss.py        the label-aware contrastive loss, its floor, and the anchors
config.py      FinetuneConfig: every setting, its default and its reason
train.py       one step of training
parts.py       a batch that does not fit, in parts
world.py       several processes that train one model
average.py     a running average of the weights
validation.py  retrieval on held-out pictures, and what is left of the base
blend.py       (1 - alpha) * theta_0 + alpha * theta_1
run.py         the run around the steps
claim.py       which output a run may write to
memory.py      what a run holds in memory
board.py       scalars for TensorBoard
plots.py       training.png: the course of a run as one picture
checkpoint.py  what survives a kill -9, and the model folder written at the end
cli.py         `imret finetune`
"""
