"""ADAPT: labelled pictures and a base model become a better encoder, as a model folder.

captions.py    category names to training captions and evaluation queries; captions.csv
sources.py     a folder or a manifest to records; validation carved off
data.py        records to pixels and class-balanced batches of augmented pictures
models.py      what training starts from: a pretrained model, or an architecture
loss.py        the label-aware contrastive loss and its floor
train.py       FinetuneConfig, one step of training, validation
run.py         the run around the steps: refusals, resume, interruption
checkpoint.py  what survives a kill -9, and the model folder written at the end
cli.py         `imret finetune`
"""
