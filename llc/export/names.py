"""What exports say of a network, and what none of them may change silently."""

from llc.errors import UserError


def check_blurpool(network, options):
    if network.options["use_blurpool"] and not options.with_blurpool:
        raise UserError(
            f"{options.run} was trained with BlurPool (training.use_blurpool). A plain "
            f"{network.options['arch']} has none, and its outputs would differ. Add --with_blurpool if the "
            "reader calls llc.network.apply_blurpool(model), or train a plain network further from it: "
            f"model.weights={options.run}, training.use_blurpool=false"
        )


def constructor(network, num_classes):
    """How the reader builds the model, in words; num_classes: None for a model without its classifier."""
    arch = network.options["arch"]
    given = "" if num_classes is None else f"num_classes={num_classes}"
    if network.family == "registered":
        return f"the plugin's {arch}" + (f" with {given}" if given else "")
    if network.family == "timm":
        return f"timm.create_model({', '.join(filter(None, (repr(arch.removeprefix('timm:')), given)))})"
    return f"torchvision.models.{arch}" + (f"({given})" if given else "")


def name_of(network):
    narrow = f" of width {network.options['width']}" if network.options["width"] != 64 else ""
    return network.options["arch"] + narrow
