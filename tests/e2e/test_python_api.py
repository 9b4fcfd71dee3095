"""A search from Python: run, stopped, resumed, its merge in memory and on disk; the notebook."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mergefront

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "search.ipynb"
# The tests' own filters would turn warnings of the kernel's libraries into errors.
RUN = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=900, kernel_name="python3").execute(cwd=sys.argv[3])
nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture
def job(tiny_job, tmp_path):
    return tiny_job(
        archive=str(tmp_path / "archive.sqlite"),
        budget={"evaluations": 16},
        validation={"candidates": 2},
    )


class EnoughError(Exception):
    pass


def test_search_is_run_stopped_resumed_and_becomes_a_model(job, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from workers.digest import weights_digest

    seen = []

    def stop_at_three(outcome: mergefront.Finished) -> None:
        seen.append(outcome)
        if len(seen) == 3:
            raise EnoughError

    assert mergefront.check(job).estimate.num_genes == 6
    with pytest.raises(EnoughError):
        mergefront.run(job, on_outcome=stop_at_three, in_process=True)
    assert all(outcome.scores for outcome in seen)
    counted = []
    search = mergefront.resume(
        job.archive, {"budget.evaluations": 17}, on_outcome=counted.append, in_process=True
    )
    assert len(search.candidates()) <= 17
    assert len(counted) >= 14
    merge = search.choose()
    live = mergefront.materialize(merge)
    with pytest.warns(UserWarning, match="licence"):
        directory = mergefront.export(merge, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(directory)
    for (name, ours), (other, theirs) in zip(
        live.model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs), name
    recorded = json.loads((directory / "recipe.json").read_text())["weights_digest"]
    tensors = {n: t for n, t in live.model.state_dict().items() if n != "lm_head.weight"}  # tied
    assert weights_digest(tensors.items()) == recorded
    tokens = live.model.generate(
        **live.tokenizer("red green then", return_tensors="pt"), max_new_tokens=4, do_sample=False
    )
    assert tokens.shape[1] > 4


def test_notebook_runs_from_start_to_end(job, tmp_path):
    pytest.importorskip("nbclient", reason="nbclient is not installed")
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
    out = tmp_path / "executed.ipynb"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "MERGEFRONT_JOB": str(path), "MERGEFRONT_OUT": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(NOTEBOOK), str(out), str(ROOT)],
        env=environment, capture_output=True, text=True, check=False, timeout=1100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [cell for cell in json.loads(out.read_text())["cells"] if cell["cell_type"] == "code"]
    shown = [output for cell in cells for output in cell["outputs"]]
    kinds = {kind for output in shown for kind in output.get("data", {})}
    assert "text/html" in kinds
    assert not [output for output in shown if output["output_type"] == "error"]
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
