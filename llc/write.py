"""Converts images to a beton and its manifest.

    python -m llc.write --cfg.data_dir=/imagenet --cfg.split=train --cfg.write_path=train.beton
    python -m llc.write --cfg.dataset=CIFAR10 --cfg.data_dir=data --cfg.split=val --cfg.write_path=val.beton
    python -m llc.write --plugin=source.py --cfg.dataset=mine --cfg.data_dir=data --cfg.write_path=mine.beton

In a clone of the project, `write_ffcv.py` is the same command.
"""

from llc import config
from llc.data.writer import WriterConfig, write_beton


def main(argv):
    write_beton(config.read({"cfg": WriterConfig}, argv, description=__doc__)["cfg"])


if __name__ == "__main__":
    config.run(main)
