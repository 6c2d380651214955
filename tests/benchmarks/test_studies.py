"""The committed results of studies, and the page that is rendered from them."""

import json

from benchmarks.studies import PAGE, STUDIES, page
from pyddfast.study import shipped


def test_the_page_is_what_the_results_render():
    assert PAGE.read_text() == page(), "python -m benchmarks.studies"


def test_every_result_names_its_scale_and_is_whole():
    files = sorted(STUDIES.glob("*.json"))
    assert files
    for file in files:
        run = json.loads(file.read_text())
        assert file.stem == f"{run['study']}-{run['scale']}"
        assert run["study"] in shipped()
        assert run["complete"]
        assert run["failures"] == []
        for cell in run["cells"]:
            mean = sum(cell["accuracies"]) / len(cell["accuracies"])
            assert abs(mean - cell["mean"]) < 1e-12
            assert len(cell["accuracies"]) == run["settings"]["seeds"]
