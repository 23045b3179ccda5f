"""The label-aware losses, of a softmax and of a sigmoid, and the value that the former cannot fall below.

Knows features and which texts are true of which images; knows no pictures, captions or models.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    match: Tensor,
    counts: Tensor,
    logit_scale: Tensor | float,
) -> Tensor:
    r"""Return the symmetric contrastive loss in which every text that is true of an image is its match.

    UniCL's bidirectional loss. For B pairs with unit image features u_i, unit text features v_j,
    s_ij = logit_scale * u_i . v_j, P(i) the texts that are true of image i (those of its label, in the
    paper), and P(j) the images that text j is true of:

        L_i2t = -1/B sum_i 1/|P(i)| sum_{j in P(i)} log( exp(s_ij) / sum_j' exp(s_ij') )
        L_t2i = -1/B sum_j 1/|P(j)| sum_{i in P(j)} log( exp(s_ij) / sum_i' exp(s_i'j) )
        L     = (L_i2t + L_t2i) / 2

    It is cross entropy against targets spread evenly over the matches. With one match each it is InfoNCE,
    CLIP's loss. Where a batch repeats a text, the B texts collapse to U unique ones that are encoded once: a
    text that stands for c of the B counts c times in every sum over j, which adds log c to its column. The
    value and every gradient stay those of the B x B loss.

    Computed in float32 whatever the features are in.

    Args:
        image_features: (B, D) float, unit L2 norm.
        text_features: (U, D) float, unit L2 norm.
        match: (B, U) bool, True where the text is true of the image; no row or column is all False.
        counts: (U,) how many of the B pairs each text stands for, >= 1; sums to B.
        logit_scale: Inverse temperature, > 0.

    Returns:
        Scalar float32, at least `loss_floor(match, counts)`.

    Source: Yang et al. (2022), "Unified Contrastive Learning in Image-Text-Label Space",
        https://arxiv.org/abs/2204.03610. The sum over matches stands outside the logarithm as in Khosla et
        al. (2020), "Supervised Contrastive Learning", https://arxiv.org/abs/2004.11362.
    """
    logits = logit_scale * (image_features.float() @ text_features.float().T)  # (B, U)
    counts = counts.to(logits)

    weight = match * counts  # (B, U): how many of the B texts stand behind each match
    log_p = logits - torch.logsumexp(logits + counts.log(), dim=1, keepdim=True)  # over texts
    image_to_text = -((weight * log_p).sum(dim=1) / weight.sum(dim=1)).mean()

    log_q = logits.log_softmax(dim=0)  # over images
    per_text = -(match * log_q).sum(dim=0) / match.sum(dim=0)  # (U,)
    text_to_image = (counts * per_text).sum() / counts.sum()
    return (image_to_text + text_to_image) / 2


def loss_floor(match: Tensor, counts: Tensor) -> Tensor:
    """Return the least value the loss can have on a batch: the entropy of its targets.

    A perfect model gives each of n matches the probability 1/n, which costs log n. So a batch of 260
    pictures in ten equal categories ends at log 26 = 3.26, and a loss that settles there has converged: the
    distance to the floor is what there is to watch.

    Args:
        match: (B, U) bool, as in `contrastive_loss`.
        counts: (U,) as in `contrastive_loss`.

    Returns:
        Scalar float32.
    """
    counts = counts.to(torch.float32)
    texts_of_image = (match * counts).sum(dim=1)  # (B,)
    images_of_text = match.sum(dim=0).to(counts)  # (U,)
    return (texts_of_image.log().mean() + (counts * images_of_text.log()).sum() / counts.sum()) / 2


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    match: Tensor,
    counts: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
) -> Tensor:
    r"""Return the loss of a model that judges each pair of picture and text on its own, as SigLIP does.

    For B pairs with unit image features u_i, unit text features v_j and s_ij = logit_scale * u_i . v_j +
    logit_bias, with z_ij = 1 where the text is true of the image and -1 elsewhere:

        L = -1/M sum_ij log sigmoid(z_ij s_ij)

    M is the number of pairs that match. In the paper each image has one text and M = B; dividing by M keeps
    the size of the loss, and so its weight beside the anchors, where categories give an image several. A text
    that stands for c of the B counts c times. Unlike a softmax, equal matches do not compete: the least value
    is 0, and the sigmoid stays the chance that a pair of such a batch matches.

    Computed in float32 whatever the features are in. No process needs more than the gathered features.

    Args:
        image_features: (B, D) float, unit L2 norm.
        text_features: (U, D) float, unit L2 norm.
        match: (B, U) bool, True where the text is true of the image; some pair matches.
        counts: (U,) how many of the B pairs each text stands for, >= 1; sums to B.
        logit_scale: Inverse temperature, > 0.
        logit_bias: Added to every logit.

    Returns:
        Scalar float32, above 0.

    Source: Zhai et al. (2023), "Sigmoid Loss for Language Image Pre-Training",
        https://arxiv.org/abs/2303.15343
    """
    logits = logit_scale * (image_features.float() @ text_features.float().T) + logit_bias  # (B, U)
    counts = counts.to(logits)
    of_pairs = nn.functional.logsigmoid(torch.where(match, logits, -logits))
    return -(of_pairs * counts).sum() / (match * counts).sum()


# ---- Against forgetting ----------------------------------------------------------------------------------


def feature_anchor(features: Tensor, frozen: Tensor) -> Tensor:
    """Return how far features have turned from those of the frozen base: the mean of 1 - cosine.

    Half the squared distance of unit vectors, so its gradient is that of the feature anchor of the paper.

    Args:
        features: (B, D) float, unit L2 norm.
        frozen: (B, D) float, unit L2 norm, no gradient.

    Returns:
        Scalar float32 in [0, 2]; 0 if nothing has moved.

    Source: Mukhoti et al. (2023), "Fine-tuning can cripple your foundation model; preserving features may be
        the solution", https://arxiv.org/abs/2308.13320.
    """
    return (1 - (features.float() * frozen.float()).sum(dim=-1)).mean()


def phrase_divergence(features: Tensor, frozen: Tensor, phrases: Tensor, *, logit_scale: float) -> Tensor:
    r"""Return how differently base and model spread a picture over a bank of phrases.

    The mean over pictures of KL(p_0 || p), with p = softmax(logit_scale * u . V) over the P phrases and p_0
    the same of the base's features. The phrases' features are the base's own and fixed: it is the picture
    that must not change its meaning.

    Args:
        features: (B, D) float, unit L2 norm.
        frozen: (B, D) float, unit L2 norm: the base's features of the same pictures.
        phrases: (P, D) float, unit L2 norm: the base's features of the phrases.
        logit_scale: The base's inverse temperature, > 0.

    Returns:
        Scalar float32, at least 0; 0 if nothing has moved.

    Source: Hinton et al. (2015), "Distilling the Knowledge in a Neural Network",
        https://arxiv.org/abs/1503.02531, with the phrases as the classes.
    """
    log_p = (logit_scale * features.float() @ phrases.float().T).log_softmax(dim=-1)  # (B, P)
    log_p_0 = (logit_scale * frozen.float() @ phrases.float().T).log_softmax(dim=-1)
    return (log_p_0.exp() * (log_p_0 - log_p)).sum(dim=-1).mean()
