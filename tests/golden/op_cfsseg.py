"""F-RLS: the weights after each group of batches, and the scores."""

from torch import Tensor

from contseg.methods.base import SegOutput, StepContext
from contseg.methods.cfsseg import AnalyticClassifier
from contseg.tests.golden.harness import Fixture, make_step, operation


@operation("analytic_rls")
def analytic_rls(fixture: Fixture) -> None:
    projection = fixture.tensor("in_projection").double()
    term = AnalyticClassifier(len(projection), fixture["cfg_gamma"], None)
    term.projection = projection
    term.gram, term.targets = (
        projection.new_zeros(len(projection), len(projection)),
        projection.new_zeros(*projection.shape[:1], 0),
    )

    def network(embedding: Tensor) -> SegOutput:
        return SegOutput(embedding, embedding, embedding)

    first, old, group = 0, 1, 0
    while f"cfg_batches_{group}" in fixture:
        last, classes = fixture[f"cfg_batches_{group}"], fixture.arrays[f"paper_weight_{group}"].shape[1]
        pairs = [(fixture.tensor(f"in_features_{i}"), fixture.tensor(f"in_labels_{i}")) for i in range(first, last)]
        step = make_step(old, classes - old, index=int(group > 0))
        term.end_step(StepContext(step, network, None, lambda pairs=pairs: iter(pairs)))
        for name in ("paper", "released"):
            fixture.check(f"{name}_weight_{group}", term.weights)
        first, old, group = last, classes, group + 1
    fixture.check("released_scores", term.scores(fixture.tensor("in_query")).flatten(2).transpose(1, 2))
