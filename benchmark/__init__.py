"""How methods are run and compared. Wings, each importing only those before it: store, plan, models, train, contract,
score, report, cli."""
