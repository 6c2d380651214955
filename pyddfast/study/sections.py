"""The parts of a report beside the table of accuracies."""

from __future__ import annotations

from collections.abc import Callable

from pyddfast.study.curve_sections import convergence_section, law_section
from pyddfast.study.jobs import Plan
from pyddfast.study.objective_sections import (
    dcs_section,
    dynamics_section,
    ood_section,
    tm_curve_section,
)
from pyddfast.study.results import Measured
from pyddfast.study.runner import Store
from pyddfast.study.section import Section
from pyddfast.study.spec import Study

__all__ = ["sections"]


def sections(study: Study, plan: Plan, store: Store, measured: Measured) -> list[Section]:
    """The parts that the study asks for; one whose jobs are not done is left out."""
    made = []
    for shown in study.show:
        if shown in _SECTIONS:
            section = _SECTIONS[shown](study, plan, store, measured)
            if section is not None:
                made.append(section)
    return made


_SECTIONS: dict[str, Callable[[Study, Plan, Store, Measured], Section | None]] = {
    "dcs": dcs_section,
    "tm-curve": tm_curve_section,
    "dynamics": dynamics_section,
    "ood": ood_section,
    "convergence": convergence_section,
    "scaling-law": law_section,
}
