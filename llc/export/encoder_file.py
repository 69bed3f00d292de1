"""--to=encoder: one file with everything, for llc.load on another machine."""

from llc.errors import UserError


def write(encoder, path, options):
    if path.suffix != ".safetensors":
        raise UserError(f"--out={path}: expected a name that ends in .safetensors")
    encoder.save(path)
    print(f"{path}: {encoder.num_bits} bits, {len(encoder.codebook)} classes, for llc.load")
