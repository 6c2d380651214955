"""Data sets, their readers, and the layout of a distilled set."""

from pyddfast.data.atomic import new_folder, refuse_non_empty, write_bytes
from pyddfast.data.catalog import load, names
from pyddfast.data.cifar import CIFAR10_NORMALIZATION, CIFAR100_NORMALIZATION
from pyddfast.data.datasets import (
    EFFICIENTNET_LITE_NORMALIZATION,
    IMAGENET_NORMALIZATION,
    ImageDataset,
    ImageSource,
    Normalization,
    network_input,
    normalize,
    to_pixels,
)
from pyddfast.data.distilled import DistilledSet, export_png
from pyddfast.data.fashion_mnist import FASHION_MNIST_NORMALIZATION
from pyddfast.data.folder import ImageFolder
from pyddfast.data.idx import read_idx, write_idx
from pyddfast.data.kip import KIPWhitening
from pyddfast.data.layouts import Layout, open_layout, read_layout, write_layout
from pyddfast.data.pipelines import (
    Batch,
    ImagePipeline,
    Request,
    draw_request,
    open_pipeline,
    replay_request,
)
from pyddfast.data.resident import ResidentDataset
from pyddfast.data.sizes import image_sizes
from pyddfast.data.softlabels import (
    LabelBatch,
    SoftLabels,
    SoftLabelWriter,
    StoreInfo,
    export_fkd,
    import_fkd,
    read_fkd,
    recode,
    write_fkd,
)
from pyddfast.data.tensor_layouts import (
    TensorLayout,
    codebase_normalization,
    read_dcbench,
    read_tensor_layout,
    read_vico_tiny_imagenet,
    write_tensor_layout,
)
from pyddfast.data.tiny_imagenet import TINY_IMAGENET_NORMALIZATION
from pyddfast.data.trajectories import Trajectories, write_replay_buffer
from pyddfast.data.zca import ZCAWhitening, whiten

__all__ = [
    "CIFAR10_NORMALIZATION",
    "CIFAR100_NORMALIZATION",
    "EFFICIENTNET_LITE_NORMALIZATION",
    "FASHION_MNIST_NORMALIZATION",
    "IMAGENET_NORMALIZATION",
    "TINY_IMAGENET_NORMALIZATION",
    "Batch",
    "DistilledSet",
    "ImageDataset",
    "ImageFolder",
    "ImagePipeline",
    "ImageSource",
    "KIPWhitening",
    "LabelBatch",
    "Layout",
    "Normalization",
    "Request",
    "ResidentDataset",
    "SoftLabelWriter",
    "SoftLabels",
    "StoreInfo",
    "TensorLayout",
    "Trajectories",
    "ZCAWhitening",
    "codebase_normalization",
    "draw_request",
    "export_fkd",
    "export_png",
    "image_sizes",
    "import_fkd",
    "load",
    "names",
    "network_input",
    "new_folder",
    "normalize",
    "open_layout",
    "open_pipeline",
    "read_dcbench",
    "read_fkd",
    "read_idx",
    "read_layout",
    "read_tensor_layout",
    "read_vico_tiny_imagenet",
    "recode",
    "refuse_non_empty",
    "replay_request",
    "to_pixels",
    "whiten",
    "write_bytes",
    "write_fkd",
    "write_idx",
    "write_layout",
    "write_replay_buffer",
    "write_tensor_layout",
]
