"""Entropy, least confidence and margin: samples that a trained network is unsure of.

High scores are uncertain.  The official code, DeepCore's ``uncertainty.py``, differs, which
``semantics="official"`` reproduces: its least confidence is the largest *logit*, not probability,
and its entropy adds 1e-6 inside the logarithm.  Its ranking of all classes at once takes the most
confident samples, against its name (issue 11 there); :func:`pyddfast.coresets.select` ranks within
classes, as its published numbers do, and has no such switch.
"""

from __future__ import annotations

from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.selection import Scores
from pyddfast.coresets.semantics import Semantics, check_semantics
from pyddfast.ops import sample_scores

__all__ = ["entropy_scores", "least_confidence_scores", "margin_scores"]


def entropy_scores(embedding: Embedding, *, semantics: Semantics = "paper") -> Scores:
    """−Σ p log p, in nats.

    Args:
        embedding: Of a trained network.
        semantics: ``"official"``: −Σ p log(p + 1e-6), which flattens what is easy.

    Raises:
        ValueError: ``semantics`` is unknown.
    """
    check_semantics(semantics)
    if semantics == "official":
        p = embedding.logits.softmax(1)
        values = -(p * (p + 1e-6).log()).sum(1)
    else:
        values = sample_scores(embedding.logits, embedding.labels).entropy
    return Scores(values, "entropy", "uncertain", {**embedding.meta, "semantics": semantics})


def least_confidence_scores(embedding: Embedding, *, semantics: Semantics = "paper") -> Scores:
    """1 − max p, without the cancellation.

    Args:
        embedding: Of a trained network.
        semantics: ``"official"``: minus the largest logit.

    Raises:
        ValueError: ``semantics`` is unknown.
    """
    check_semantics(semantics)
    if semantics == "official":
        values = -embedding.logits.amax(1)
    else:
        # 1 - p of the guess: the sum of the other probabilities.
        guess = embedding.logits.argmax(1)
        values = sample_scores(embedding.logits, guess).one_minus_p_y
    return Scores(
        values, "least-confidence", "uncertain", {**embedding.meta, "semantics": semantics}
    )


def margin_scores(embedding: Embedding) -> Scores:
    """Minus the difference of the two largest probabilities; both semantics agree.

    Args:
        embedding: Of a trained network.
    """
    values = -sample_scores(embedding.logits, embedding.labels).top2_margin
    return Scores(values, "margin", "uncertain", embedding.meta)
