"""The scripts, their revisions and their changes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """Lines of one file, counted in the named revision.

    Attributes:
        path: of the file inside the codebase.
        after: the line behind which `added` goes.
        added: lines of ours.
        removed: first and last of the lines that go; (0, 0) for none.
    """

    path: str
    after: int
    added: tuple[str, ...] = ()
    removed: tuple[int, int] = (0, 0)

    @property
    def count(self) -> int:
        """Lines changed: a removed line with one added in its place counts once."""
        first, last = self.removed
        return max(len(self.added), last - first + 1 if first else 0)


@dataclass(frozen=True)
class Codebase:
    """One script of a public repository.

    Attributes:
        name: of the method, and of the file with the results.
        url: of the repository.
        revision: the full commit.
        script: path of what is run, in its own folder.
        arguments: of the script; those of its published command but for sizes.
        variants: changes by the name of the variant.
        sizes: further arguments, which the harness fills in: ``{batch}``, ``{steps}``,
            ``{quarter}`` of the steps, and the folders ``{out}``, ``{images}``, ``{patches}``,
            ``{statistics}`` and ``{repo}``.
        folders: of the repository that the script needs; empty: its own.
        stubs: functions of ``stubs.py`` beside those that every script gets.
        small: whether ResNet-18 stands for every network.
        needs: functions of ``inputs.py`` that make what it reads.
        models: what the teachers are, for the record.
    """

    name: str
    url: str
    revision: str
    script: str
    arguments: tuple[str, ...]
    variants: dict[str, tuple[Change, ...]]
    sizes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    stubs: tuple[str, ...] = ()
    small: bool = True
    needs: tuple[str, ...] = ()
    models: str = "torchvision's ResNet-18, seeded weights, running statistics of noise"


# What the scripts of the SRe2L line call the same.
_SIZES = ("--batch-size", "{batch}", "--iteration", "{steps}", "--ipc-start", "0", "--ipc-end", "1")
_SIZES += ("--syn-data-path", "{out}")

# The published arguments of ImageNet-1k; sizes and iterations come from the harness.
_SYNTHESIS = ("--arch-name", "resnet18", "--lr", "0.25", "--r-bn", "0.01")


def _loss(
    path: str, after: int, hooks: tuple[int, int], total: tuple[int, int]
) -> tuple[Change, ...]:
    """One object for all layers in place of the loop that hooks them and of the sum over them."""
    return (
        Change(path, after, ("from pyddfast.nn import BNStatLoss",)),
        Change(
            path,
            hooks[1],
            ('    bn_loss = BNStatLoss(model_teacher, args.first_bn_multiplier, mode="fused")',),
            hooks,
        ),
        Change(path, total[1], ("            loss_r_bn_feature = bn_loss()",), total),
    )


SRE2L = Codebase(
    name="sre2l",
    url="https://github.com/VILA-Lab/SRe2L",
    revision="8d00cba364bfa34aa1f5a8107dc041ae1be8ebe6",
    script="SRe2L/recover/data_synthesis.py",
    arguments=(*_SYNTHESIS, "--l2-scale", "0", "--tv-l2", "0", "--verifier"),
    variants={
        "import": (
            Change(
                "SRe2L/recover/data_synthesis.py",
                after=17,
                added=("from pyddfast.compat.sre2l import *",),
            ),
        ),
        "loss": _loss("SRe2L/recover/data_synthesis.py", after=17, hooks=(28, 30), total=(75, 75)),
    },
    sizes=_SIZES,
)

CDA = Codebase(
    name="cda",
    url=SRE2L.url,
    revision=SRE2L.revision,
    script="CDA/recover_cda_in1k.py",
    arguments=(*_SYNTHESIS, "--easy2hard-mode", "cosine", "--milestone", "1"),
    variants={
        "import": (
            Change(
                "CDA/recover_cda_in1k.py",
                after=15,
                added=("from pyddfast.compat.sre2l import *",),
            ),
        ),
        "loss": _loss("CDA/recover_cda_in1k.py", after=15, hooks=(26, 28), total=(91, 91)),
    },
    sizes=_SIZES,
)

DWA = Codebase(
    name="dwa",
    url="https://github.com/AngusDujw/Diversity-Driven-Synthesis",
    revision="c5b125f26a0a5234b814cf668ea5cee1a69d0c2b",
    script="distillation/distillation_imgnet.py",
    arguments=(*_SYNTHESIS, "--r-var", "2", "--steps", "15", "--rho", "15e-3"),
    variants={
        "import": (
            Change(
                "distillation/distillation_imgnet.py",
                after=17,
                added=("from pyddfast.compat.dwa import *",),
            ),
        ),
    },
    sizes=(*_SIZES, "--init-path", "{images}"),
    needs=("images",),
)

# Four stages of 500 iterations as published, shortened alike.
_STAGES = ("--input-size-lis", "200", "224", "200", "224")
_STAGES += ("--optimization-budgets", "{quarter}", "{quarter}", "{quarter}", "{quarter}")

FADRM = Codebase(
    name="fadrm",
    url="https://github.com/Jiacheng8/FADRM",
    revision="f445e38d43e35e54f9459823adf9ec45c0fcdb54",
    script="recover/recover.py",
    arguments=(
        *("--exp-name", "run", "--alpha", "0.5", "--apply-data-augmentation"),
        *("--teacher-model-list", "ResNet18", "--pretrained-model-type", "online"),
        *("--dataset-name", "imagenet1k", "--lr", "0.25", "--r-bn", "0.01"),
        *("--initialisation-method", "Patches", "--patch-diff", "medium"),
    ),
    variants={
        "import": (
            Change(
                "recover/utils_recover.py",
                after=136,
                added=("from pyddfast.compat.fadrm import *",),
            ),
        ),
    },
    sizes=(*_SIZES, "--patch-dir", "{patches}", *_STAGES),
    folders=("recover", "models"),
    needs=("patches",),
)

_GVBSM = "Branch_full_ImageNet_1k/recover/data_synthesis_with_svd_with_db_with_all_statistic.py"

GVBSM = Codebase(
    name="gvbsm",
    url="https://github.com/shaoshitong/G_VBSM_Dataset_Condensation",
    revision="1ed80b0ed0bdde206ac61f5b0b9e70f8e8a5d30e",
    script=_GVBSM,
    arguments=(
        *("--lr", "0.1", "--l2-scale", "0", "--tv-l2", "0", "--r-loss", "0.01"),
        *("--nuc-norm", "1.", "--verifier"),
    ),
    variants={
        "import": (
            Change(
                _GVBSM,
                after=25,
                added=("from pyddfast.compat.gvbsm import *",),
            ),
        ),
    },
    # Two images a class in a batch, for the loss between them.
    sizes=(
        *("--batch-size", "{batch}", "--iteration", "{steps}", "--ipc-number", "2"),
        *("--syn-data-path", "{out}"),
        *("--statistic-path", "{repo}/Branch_full_ImageNet_1k/recover/statistic"),
    ),
    stubs=("one_process",),
    small=False,
    models="the script's four, of torchvision, seeded weights, running statistics of noise; the "
    "repository's statistics of convolutions",
)

EDC = Codebase(
    name="edc",
    url="https://github.com/shaoshitong/EDC",
    revision="80116a79ebaeae14e0f9d7517c5b193efa26c059",
    script="Branch_full_ImageNet_1k/recover/recover.py",
    arguments=(
        *("--lr", "0.05", "--category-aware", "global", "--training-momentum", "0.8"),
        *("--drop-rate", "0.0", "--l2-scale", "0", "--tv-l2", "0", "--r-loss", "0.1"),
        *("--nuc-norm", "1.", "--verifier"),
    ),
    variants={
        "import": (
            Change(
                "Branch_full_ImageNet_1k/recover/recover.py",
                after=26,
                added=("from pyddfast.compat.edc import *",),
            ),
        ),
    },
    sizes=(
        *("--batch-size", "{batch}", "--iteration", "{steps}", "--ipc-number", "1"),
        *("--syn-data-path", "{out}", "--initial-img-dir", "{images}"),
        *("--statistic-path", "{statistics}"),
    ),
    stubs=("one_process",),
    needs=("images", "statistics"),
    models="torchvision's ResNet-18 five times, seeded weights, running statistics of noise; "
    "statistics of convolutions and classes are noise's",
)

CODEBASES = {codebase.name: codebase for codebase in (SRE2L, CDA, DWA, FADRM, GVBSM, EDC)}
