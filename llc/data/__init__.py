"""Where images come from and how they reach the network: images -> betons -> batches.

images.py         any image file -> upright 8-bit RGB
sources/          folders, named datasets and additions -> image and label by index; one file per source
beton.py          the layout of an FFCV file: placing samples; tables, made and read with every bound checked
manifest.py       OUT.beton.json: class names, counts, settings, and what verifies the beton
encoding.py       one sample as a beton stores it
workers.py        the processes that encode and write chunks of samples
writer.py         a source -> a beton and its manifest
shards.py         one or several betons, read as one dataset
subset.py         some samples of betons as a beton of their own
verify.py         a command that decodes every sample and compares all checksums
sampling.py       which samples a batch holds, crops and flips: functions of seed, epoch and sample
storage.py        a batch's samples in memory: from mapped files, or from pages read ahead
prefetch.py       the thread that works ahead
loaders.py        betons -> train and val batches, from all of these
preprocessing.py  one image -> what a network takes
batches.py        folders and betons -> batches for a trained model
"""
