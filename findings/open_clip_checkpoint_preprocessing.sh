#!/bin/sh
# open_clip_torch 3.3.0: a checkpoint file is shown pictures as OpenAI's models are, whatever its architecture.
#
# A good engineer would guess that `create_model_and_transforms("PE-Core-T-16-384", pretrained="weights.pt")` makes
# the transform that all published weights of PE-Core-T-16-384 were trained with (mean and std 0.5, the whole picture
# squashed to a square). It makes OpenAI's: mean 0.481, 0.458, 0.408 and a centre crop; so do MobileCLIP, SigLIP and
# CLIPA, whose published tags say otherwise. Nothing warns: a fine-tuned checkpoint of one of these families, loaded
# by its path, answers with less than it knows.
# What to do: give image_mean, image_std, image_interpolation and image_resize_mode, or load from a folder with an
# open_clip_config.json.
#
# Installs into a temporary folder (several minutes: torch), and ends with 1 if the behaviour is another.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check open_clip_torch==3.3.0 timm==1.0.31 torch==2.15.0 torchvision==0.29.2
cd "$folder"
venv/bin/python - <<'PYTHON'
import open_clip
import torch

name = "PE-Core-T-16-384"
model = open_clip.create_model(name)
torch.save(model.state_dict(), "weights.pt")
published = {
    key: open_clip.get_pretrained_cfg(name, "meta")[key] for key in ("mean", "std", "resize_mode")
}
loaded, _, _ = open_clip.create_model_and_transforms(name, pretrained="weights.pt")
used = {key: loaded.visual.preprocess_cfg[key] for key in published}
print("published for", name, published)
print("used for a checkpoint file of it", used)
assert tuple(published["mean"]) == (0.5, 0.5, 0.5) and published["resize_mode"] == "squash"
assert [round(value, 3) for value in used["mean"]] == [0.481, 0.458, 0.408], "it is another: the finding is stale"
assert used["resize_mode"] == "shortest"
PYTHON
echo "as described"
