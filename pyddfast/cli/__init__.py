"""The command line: ``pyddfast COMMAND ...``.

This file only finds the command, so that ``pyddfast --help`` answers at once; the commands
themselves, in the modules beside it, import torch.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from pyddfast._version import __version__

__all__ = ["COMMANDS", "keep_freed_memory", "main"]

# Words of a command: its module in pyddfast.cli and its function there, and a line of help.
COMMANDS: dict[tuple[str, ...], tuple[str, str]] = {
    ("info",): ("", "versions, backends, CPU and CUDA kernels, missing extras"),
    ("quickstart",): ("quickstart.quickstart", "the main job in five minutes, with a report"),
    ("distill", "rded"): ("rded.distill_rded", "distill a data set by RDED"),
    ("distill", "sre2l"): ("synthesis.distill_sre2l", "synthesise images from teachers, SRe2L"),
    ("distill", "cda"): ("synthesis.distill_cda", "synthesise images from teachers, CDA"),
    ("distill", "dwa"): ("synthesis.distill_dwa", "synthesise images from teachers and data, DWA"),
    ("distill", "gvbsm"): (
        "synthesis.distill_gvbsm",
        "synthesise images from teachers and data, G-VBSM",
    ),
    ("distill", "edc"): ("synthesis.distill_edc", "synthesise images from teachers and data, EDC"),
    ("distill", "fadrm"): (
        "synthesis.distill_fadrm",
        "synthesise images from teachers and data, FADRM",
    ),
    ("distill", "dc"): ("matching.distill_dc", "synthesise by gradient matching, DC"),
    ("distill", "dsa"): ("matching.distill_dsa", "synthesise by augmented gradient matching, DSA"),
    ("distill", "dm"): ("matching.distill_dm", "synthesise by distribution matching, DM"),
    ("distill", "d4m"): ("generative.distill_d4m", "denoise prototypes of latents, D4M"),
    ("distill", "minimax"): ("generative.distill_minimax", "sample a fine-tuned DiT, Minimax"),
    ("set", "import"): ("tensor_files.set_import", "tensor files of an official code to a set"),
    ("set", "export"): ("tensor_files.set_export", "a set to tensor files of an official code"),
    ("experts",): ("trajectories.experts", "train experts, keep their way: for tm and datm"),
    ("distill", "tm"): ("trajectories.distill_tm", "synthesise along experts' trajectories, TM"),
    ("distill", "datm"): (
        "trajectories.distill_datm",
        "synthesise images and labels along experts' trajectories, DATM",
    ),
    ("distill", "ca2d"): ("coresets.cad.distill_ca2d", "distill by CA2D: RDED on the head of CAD"),
    ("coreset", "random"): (
        "coresets.random.coreset_random",
        "pick at random, the same number a class",
    ),
    ("coreset", "el2n-easy"): ("coresets.el2n.coreset_el2n_easy", "pick the lowest EL2N"),
    ("coreset", "el2n"): ("coresets.el2n.coreset_el2n", "pick the highest EL2N"),
    ("coreset", "el2n-best"): ("coresets.el2n.coreset_el2n_best", "pick the best window of EL2N"),
    ("coreset", "el2n-sl"): ("coresets.el2n.coreset_el2n_sl", "pick the farthest from a teacher"),
    ("coreset", "grand"): ("coresets.el2n.coreset_grand", "pick the largest gradient norm"),
    ("coreset", "forgetting"): (
        "coresets.dynamics.coreset_forgetting",
        "pick the most often forgotten",
    ),
    ("coreset", "aum"): ("coresets.dynamics.coreset_aum", "pick the largest area under the margin"),
    ("coreset", "dyn-unc"): (
        "coresets.dynamics.coreset_dyn_unc",
        "pick the most uncertain over time",
    ),
    ("coreset", "dual"): ("coresets.dynamics.coreset_dual", "pick the uncertain and hard"),
    ("coreset", "cad-prune"): (
        "coresets.cad.coreset_cad_prune",
        "pick by compute-aligned difficulty",
    ),
    ("coreset", "entropy"): ("coresets.uncertainty.coreset_entropy", "pick the highest entropy"),
    ("coreset", "least-confidence"): (
        "coresets.uncertainty.coreset_least_confidence",
        "pick the smallest largest probability",
    ),
    ("coreset", "margin"): ("coresets.uncertainty.coreset_margin", "pick the smallest margin"),
    ("coreset", "moderate"): (
        "coresets.uncertainty.coreset_moderate",
        "pick at a typical distance from the class's middle",
    ),
    ("coreset", "cal"): (
        "coresets.uncertainty.coreset_cal",
        "pick what neighbours contradict",
    ),
    ("coreset", "k-centers"): ("coresets.geometry.coreset_k_centers", "pick centers of features"),
    ("coreset", "herding"): ("coresets.geometry.coreset_herding", "pick by the mean of features"),
    ("coreset", "contextual-diversity"): (
        "coresets.geometry.coreset_contextual_diversity",
        "pick the farthest apart in predictions",
    ),
    ("coreset", "facility-location"): (
        "coresets.gradients.coreset_facility_location",
        "pick what the rest is like",
    ),
    ("coreset", "graph-cut"): (
        "coresets.gradients.coreset_graph_cut",
        "pick the like that are unlike each other",
    ),
    ("coreset", "craig"): ("coresets.gradients.coreset_craig", "pick gradients that stand for all"),
    ("coreset", "grad-match"): (
        "coresets.gradients.coreset_grad_match",
        "pick gradients that sum to the mean",
    ),
    ("coreset", "glister"): (
        "coresets.gradients.coreset_glister",
        "pick by gradient steps",
    ),
    ("coreset", "recorded"): (
        "coresets.recorded.coreset_recorded",
        "pick by a score of a pyddfast score",
    ),
    ("coreset", "selmatch"): (
        "coresets.recorded.coreset_selmatch",
        "pick SelMatch's window of a pyddfast score",
    ),
    ("coreset", "repeated"): (
        "coresets.repeated.coreset_repeated",
        "repeat the images of a coreset",
    ),
    ("score",): ("score.score", "one recorded training, its scores of every image"),
    ("check-set",): ("labels.check_set", "count a set's images, ask a teacher about its labels"),
    ("relabel",): ("labels.relabel", "store a teacher's labels of every view of a training"),
    ("labels", "import"): ("labels.labels_import", "official soft-label files to a store"),
    ("labels", "export"): ("labels.labels_export", "a store to official soft-label files"),
    ("labels", "recode"): ("labels.labels_recode", "a store in another form"),
    ("train",): ("training.train", "train students on a set in a label regime"),
    ("evaluate",): ("evaluation.evaluate", "measure trained weights on a test set"),
    ("study",): ("study.study", "run a study of the paper as jobs, with a report"),
    ("analyze", "dcs"): ("analysis.analyze_dcs", "does an objective order subsets as errors do?"),
    ("analyze", "scaling-law"): (
        "analysis.analyze_scaling_law",
        "how the error falls with epochs, by the paper's law",
    ),
    ("analyze", "convergence"): (
        "analysis.analyze_convergence",
        "epochs to the plateau of the error, and their ratios",
    ),
    ("analyze", "lrs"): ("robust_scores.analyze_lrs", "DD-Ranking's label-robust score"),
    ("analyze", "ars"): ("robust_scores.analyze_ars", "DD-Ranking's augmentation-robust score"),
    ("analyze", "objective"): (
        "objectives.analyze_objective",
        "distillation objectives of finished sets: SRe2L, DWA, DM, DC, TM",
    ),
    ("analyze", "subsets"): ("objectives.analyze_subsets", "the pool of subsets of DCS"),
    ("analyze", "corrupt"): (
        "robustness.analyze_corrupt",
        "a test split under ImageNet-C's corruptions",
    ),
    ("analyze", "ood"): ("robustness.analyze_ood", "accuracy of weights on corrupted images"),
    ("analyze", "dynamics"): (
        "dynamics.analyze_dynamics",
        "trend of a synthesis: its loss and its students' accuracy",
    ),
    ("analyze", "start-epochs"): (
        "dynamics.analyze_start_epochs",
        "TM's loss by starting epoch",
    ),
    ("analyze", "grid"): ("dynamics.analyze_grid", "images of a class, a row a set"),
    ("compare",): ("comparison.compare", "train students on several sets, judge the differences"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; default those of the process.

    Returns:
        Exit code: 0; 2 after an error, told in one line on stderr (with ``PYDDFAST_DEBUG=1`` as a
        traceback); 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("PYDDFAST_DEBUG") == "1"
    try:
        return _run(words)
    except KeyboardInterrupt:
        # A study, for one, goes on without being told.
        _say("stopped; the same command goes on where it was, by --resume where it has that option")
        return 130
    except BrokenPipeError:
        # The reader of a pipe has left (`| head`): nobody to tell.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except Exception as error:
        if debug:
            raise
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        _say(f"error: {kind}{' '.join(str(error).split())}")
        return 2


def _run(words: list[str]) -> int:
    if words[:1] in (["--version"], ["-V"]):
        print(f"pyddfast {__version__}")
        return 0
    for command, (function, _) in COMMANDS.items():
        if tuple(words[: len(command)]) == command:
            rest = words[len(command) :]
            return _call(command, function, rest) if function else _info(rest)
    group = tuple(words[:1])
    members = [command for command in COMMANDS if command[:1] == group]
    if not words or words[0] in ("-h", "--help"):
        print(_help(list(COMMANDS), ""))
        return 0
    if members and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(_help(members, f" {words[0]}"))
        return 0
    given = " ".join(words[:2] if members else words[:1])
    known = ", ".join(" ".join(command) for command in members or COMMANDS)
    raise ValueError(f"unknown command {given!r}; known are: {known}")


def _info(rest: list[str]) -> int:
    """The command that says which extras are missing needs none of them."""
    parser = argparse.ArgumentParser("pyddfast info", description="Show " + COMMANDS[("info",)][1])
    try:
        parser.parse_args(rest)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 2
    from pyddfast.info import format_info

    print(format_info())
    return 0


def _call(command: tuple[str, ...], function: str, rest: list[str]) -> int:
    from pyddfast._extras import require

    tyro = require("tyro", "methods")
    keep_freed_memory()
    module, _, name = function.rpartition(".")
    commands = importlib.import_module(f"pyddfast.cli.{module}")

    told: set[str] = set()

    def warn(message: Warning | str, *where: object) -> None:
        """A warning as a line, once a command, without the place in the code."""
        if str(message) not in told:
            told.add(str(message))
            _say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = warn  # type: ignore[assignment]
        try:
            tyro.cli(
                getattr(commands, name),
                prog=" ".join(("pyddfast", *command)),
                args=rest,
            )
        except SystemExit as end:
            # tyro has printed the help (0) or what is wrong with the arguments (2).
            return end.code if isinstance(end.code, int) else 2
    return 0


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 32 MiB for the next step.

    By default it gives activations of some megabytes back to the kernel, which hands them out
    again page by page, zeroed: a fifth of the time of a small network's training step on a CPU.
    A command owns its process, so it may decide this; the library itself does not.

    Returns:
        Whether it took effect: False without glibc, or where ``MALLOC_*`` variables decide already.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # From <malloc.h>; 32 MiB is the most that glibc accepts as threshold.
    m_trim_threshold, m_mmap_threshold = -1, -3
    threshold = mallopt(m_mmap_threshold, 32 * 2**20)
    return bool(threshold and mallopt(m_trim_threshold, 2**31 - 1))


def _help(commands: Sequence[tuple[str, ...]], group: str) -> str:
    width = max(len(" ".join(command)) for command in commands)
    lines = [
        f"usage: pyddfast{group or ' COMMAND'} {'COMMAND ' if group else ''}[options]",
        "",
        "Dataset distillation: fast, exact building blocks and methods.",
        "",
        "commands:",
        *(f"  {' '.join(command):<{width}}  {COMMANDS[command][1]}" for command in commands),
        "",
        "pyddfast COMMAND --help shows a command's options and their defaults;",
        "pyddfast --version the version.",
    ]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"pyddfast: {text}", file=sys.stderr)
