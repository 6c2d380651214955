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
        images: whether the script starts from real images, in ``--init-path``.
        variants: changes by the name of the variant.
    """

    name: str
    url: str
    revision: str
    script: str
    arguments: tuple[str, ...]
    variants: dict[str, tuple[Change, ...]]
    images: bool = False


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
    images=True,
)

CODEBASES = {codebase.name: codebase for codebase in (SRE2L, CDA, DWA)}
