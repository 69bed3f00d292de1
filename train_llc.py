"""`python -m llc.train` as a script, which a clone of the project has had from the start."""

from llc import config
from llc.train import main

if __name__ == "__main__":
    config.run(main)
