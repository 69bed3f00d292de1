"""Accuracies of the three decoders, from predictions. Shares of 1, each image counted once."""

from llc.codes import pack_bits
from llc.hamming import decode_ed, search


def accuracies(predictions, codebook, suffix=""):
    """Metrics of Predictions against a codebook (real values [num_classes, num_bits]), as {name + suffix: float}.

    top1_class, top5_class: by class logits. top1_mhd, top5_mhd: from the packed codes, by Hamming distance, ties to the lowest class.
    top1_ed: images whose code equals their class's (lowest class where codes collide); none_ed: images that equal no class code.
    tied_mhd, tied5_mhd: images with a tie for nearest, and across the 5th place.
    """
    labels = predictions.labels[:, None]
    class_codes = pack_bits(codebook.detach()).to(predictions.codes.device)
    k = min(5, len(class_codes))
    distances, indices = search(predictions.codes, class_codes, min(k + 1, len(class_codes)))
    exact = decode_ed(predictions.codes, class_codes)

    def share(hits):
        return hits.double().mean().item()

    found = {
        "top1_class": share((predictions.top_class[:, :1] == labels).any(1)),
        "top5_class": share((predictions.top_class == labels).any(1)),
        "top1_mhd": share(indices[:, 0] == labels[:, 0]),
        "top5_mhd": share((indices[:, :k] == labels).any(1)),
        "top1_ed": share(exact == labels[:, 0]),
        "none_ed": share(exact == -1),
        "tied_mhd": share(distances[:, 0] == distances[:, 1]) if len(class_codes) > 1 else 0.0,
        "tied5_mhd": share(distances[:, k - 1] == distances[:, k]) if len(class_codes) > k else 0.0,
    }
    return {name + suffix: value for name, value in found.items()}


def evaluate(all_predictions, codebook):
    """accuracies of every entry of predict's result, in one dict."""
    metrics = {}
    for suffix, predictions in all_predictions.items():
        metrics.update(accuracies(predictions, codebook, suffix))
    return metrics
