"""--to=encoder: one file with everything, for llc.load on another machine."""


def write(encoder, path, options):
    encoder.save(path)
    print(f"{path}: {encoder.num_bits} bits, {len(encoder.codebook)} classes, for llc.load")
