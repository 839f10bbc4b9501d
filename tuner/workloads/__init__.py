"""What is trained: data and model.

In reading order:

- ``check``         may this workload be started? Without torch, so that a driver can ask
- ``pairing``       which model goes with which data
- ``data``          ``load_data``: the data of a workload by name
- ``task``          loss and score of a model's outputs
- ``splits``        the fixed split into train, validation and test
- ``datasets``      digits, Fashion-MNIST and CIFAR as arrays
- ``folders``       folders of image files: scan, classes, split
- ``decoding``      files to pixels, and the cache that processes share
- ``images``        data that lives on the device
- ``augmentation``  random crops and flips of a whole batch
- ``streaming``     data that is read batch by batch
- ``models``        ``build_model``: the model of a workload by name
- ``resnet``        the small ResNets
- ``population``    the workload diagonal as numbers
- ``diagonal``      its samples and its models
"""
