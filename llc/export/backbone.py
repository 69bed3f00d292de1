"""--to=backbone: a state dict for torchvision, timm or a plugin."""

import safetensors.torch
import torch

from llc import checkpoints
from llc.errors import UserError
from llc.export.names import check_blurpool, constructor, name_of
from llc.files import atomic_write


def write(encoder, path, options):
    network = encoder.network
    check_blurpool(network, options)
    if network.options["width"] != 64:
        raise UserError(
            f"{options.run} is {name_of(network)}: torchvision has no such network "
            "(--to=encoder and --to=original can hold it)"
        )
    if options.with_classifier and not len(encoder.codebook):
        raise UserError(
            f"--with_classifier: {options.run} holds no codebook; give one with --codebook=FILE.npy"
        )
    state = checkpoints.to_backbone(network, with_classifier=options.with_classifier)
    if path.suffix not in (".safetensors", ".pth"):
        raise UserError(f"--out={path}: expected a name that ends in .safetensors or .pth")
    data = safetensors.torch.save(state) if path.suffix == ".safetensors" else None
    atomic_write(path, lambda file: file.write(data) if data is not None else torch.save(state, file))
    num_classes = len(encoder.codebook) if options.with_classifier else None
    print(
        f"{path}: {len(state)} tensors for {constructor(network, num_classes)}"
        + ("" if options.with_classifier else f", without {network.classifier}")
        + (", after llc.network.apply_blurpool" if network.options["use_blurpool"] else "")
    )
