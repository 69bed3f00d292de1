"""--to=original: the form of github.com/RAIVNLab/LLC."""

import torch

from llc import checkpoints
from llc.codebook import save_codebook
from llc.encoder import OF_ORIGINAL
from llc.errors import UserError
from llc.export.names import check_blurpool, name_of
from llc.files import atomic_write
from llc.stages import STAGES


def write(encoder, folder, options):
    encoder.check_codes()
    network = encoder.network
    check_blurpool(network, options)
    of_codebook = encoder.stage is not None and STAGES[encoder.stage].learns_codebook
    state = checkpoints.to_original(network, with_codebook=of_codebook)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    checkpoint = {"arch": network.options["arch"].replace("resnet", "ResNet"), "state_dict": state}
    atomic_write(folder / "model_best.pth", lambda file: torch.save(checkpoint, file))
    what = "class codes: projection fc_lr and codebook fc" if of_codebook else None
    print(f"{folder / 'model_best.pth'}: {what or 'instance codes: projection fc_lr, no fc'}")
    if of_codebook and network.logit_scale != 1:
        print(f"  fc_lr includes the logit scale {network.logit_scale:.4g}, so the logits are this model's")
    if network.options["arch"] != "resnet50" or network.options["width"] != 64:
        print(f"  the original code builds ResNet50 alone; this is {name_of(network)}")
    if encoder.preprocessing.resolution != OF_ORIGINAL.resolution:
        side, ratio = encoder.preprocessing.resolution, encoder.preprocessing.crop_ratio
        print(
            f"  this network was evaluated at {side} pixels, but the file cannot say so, and readers take "
            f"{OF_ORIGINAL.resolution}; for llc.evaluate --original add --validation.resolution={side} "
            f"--validation.crop_ratio={ratio:g} --validation.resize={encoder.preprocessing.resize}"
        )
    if len(encoder.codebook):
        save_codebook(folder / "codebook.npy", encoder.codebook)
        print(f"{folder / 'codebook.npy'}: float32 {list(encoder.codebook.shape)}")
