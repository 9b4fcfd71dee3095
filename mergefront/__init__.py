"""mergefront in Python: for notebooks and other programs.

From a job to a model::

    import mergefront

    job = mergefront.load_job("job.yaml")
    search = mergefront.run(job, on_outcome=lambda outcome: print(outcome.scores))
    search.front()                                # a table of the merges that nothing dominates
    merge = search.choose(at_least={"code": 0.8})
    model = mergefront.materialize(merge).model   # of transformers, with the merged weights
    mergefront.export(merge, "model/")

A :class:`Search` is what an archive holds: its methods read what is recorded by then, so one that
runs elsewhere can be watched. What cannot work raises a :class:`MergefrontError` whose text says
what to do. The commands of ``mergefront --help`` do the same things from a shell.
"""

from configs.errors import MergefrontError
from configs.load import load_job
from configs.schema import JobConfig
from mergefront.merge import Merge, export, materialize
from mergefront.running import check, resume, run
from mergefront.search import Front, Report, Search, open_archive
from optimizer.events import Finished

__all__ = [
    "Finished",
    "Front",
    "JobConfig",
    "Merge",
    "MergefrontError",
    "Report",
    "Search",
    "check",
    "export",
    "load_job",
    "materialize",
    "open_archive",
    "resume",
    "run",
]
