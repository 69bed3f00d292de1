"""Where images come from and how they reach the network: images -> betons -> batches.

images.py     any image file -> upright 8-bit RGB
sources.py    folder-per-class trees and torchvision datasets -> image and label by index
beton.py      the layout of an FFCV file; its header and tables, read with every bound checked
manifest.py   OUT.beton.json: class names, counts, settings, and what verifies the beton before it is opened
native/       C++: samples -> cropped, resized, flipped batches; JPEG files -> what betons hold
encoding.py   one sample as a beton stores it
workers.py    the processes that encode and write chunks of samples
writer.py     a source -> a beton and its manifest
loaders.py    betons -> train and val batches
"""
