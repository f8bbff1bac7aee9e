"""How far the gates of new layers between frozen ones have opened."""

from __future__ import annotations

from sensorium.errors import UserError
from sensorium.evaluate.result import Table, TaskResult
from sensorium.evaluate.task import EvaluationTask, Progress, Subject


class Gates(EvaluationTask):
    """A table of tanh of every gate, block by block (Flamingo, arXiv 2204.14198, figure 6). It scores nothing."""

    name: str = "gates"
    split: str = "none"
    n: int = 0

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        rows = []
        for index, block in enumerate(subject.model.stack.blocks):
            gates = {name: gate for name, gate in block.named_parameters() if name in ("cross.gate", "cross.ffn_gate")}
            if gates:
                shown = [f"{float(gate.detach().float().tanh()):+.3f}" for gate in gates.values()]
                rows.append((str(index), *shown, *["-"] * (2 - len(shown))))
        if not rows:
            raise UserError("this model has no gates: leave out the task")
        return TaskResult([], tables=[Table("tanh of the gates", ("block", "attention", "feed-forward"), tuple(rows))])
