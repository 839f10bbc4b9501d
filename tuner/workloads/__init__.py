"""The data and the models of the trainings.

In reading order:

- ``check``         checks of a workload before a search starts; imports no torch
- ``data``          ``load_data``: the data of a workload by name
- ``task``          loss and score of a model's outputs
- ``splits``        the fixed split into train, validation and test
- ``datasets``      digits, Fashion-MNIST and CIFAR as arrays
- ``folders``       folders of image files: scan, classes, split
- ``decoding``      image files to pixels, and the cache that processes share
- ``images``        images that are held on the device
- ``augmentation``  random crops and flips of a whole batch
- ``cropping``      one image file to one square of pixels
- ``streaming``     images that are read from disk batch by batch
- ``models``        ``build_model``: the model of a workload by name
- ``resnet``        the small ResNets
- ``population``    the population of the workload diagonal, without torch
- ``diagonal``      samples and models of the workload diagonal
"""
