"""Where images come from and how they reach the network: images -> betons -> batches.

images.py     any image file -> upright 8-bit RGB
sources.py    folder-per-class trees and torchvision datasets -> image and label by index
beton.py      the layout of an FFCV file; its header and tables, read with every bound checked
manifest.py   OUT.beton.json: class names, counts, settings, and what verifies the beton before it is opened
writer.py     a source -> a beton and its manifest, in several processes
shards.py     one or several betons, read as one dataset
sampling.py   which samples a batch holds, crops and flips: functions of seed, epoch and sample
storage.py    a batch's samples in memory: from mapped files, or from pages read ahead
native/       a C++ library: samples -> cropped, resized, flipped batches, one call a batch
prefetch.py   the thread that works ahead
loaders.py    betons -> train and val batches, of all these
"""
