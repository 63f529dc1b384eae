"""The examples below the help of each subcommand; tests/integration/test_documented_commands.py runs them."""

EXAMPLES = {
    "run": """
  contseg run --config demo --out runs/demo
  contseg run --scenarios voc/15-1/overlapped voc/19-1/disjoint --methods FT LwF "MiB[kd=100]+SDR" Joint \\
      --seeds 0 1 2 --data voc=/data/VOC2012 --set train.batch=24 train.precision=bf16 --out runs/voc
  contseg run --scenarios shapes/3-1/overlapped --plugin my_method.py --methods FT MyMethod --set model.backbone=tiny
  contseg run --config voc --data voc=/data/VOC2012 --launcher local

A grid can be killed and run again at any time: finished steps are kept, an unfinished step goes on from its checkpoint.
""",
    "tune": """
  contseg tune --scenarios shapes/3-3/overlapped --methods FT MiB --trials 2 --on first \\
      --set model.backbone=tiny train.updates=4 train.batch=4 train.crop=48 --out runs/search
  contseg run --config runs/search/tuned.toml --seeds 0 1 2 --out runs/final

DIR gets trials.csv, search.png, tuning.md, and tuned.toml, the grid with the chosen methods.
""",
    "plan": """
  contseg plan --config demo
  contseg plan --scenarios voc/15-1/overlapped --methods FT MiB --data voc=/data/VOC2012 --graph
""",
    "list": """
  contseg list methods --long
  contseg list scenarios
  contseg list published --task 15-1 --setup overlapped
""",
    "check": """
  contseg check MiB "MiB[kd=100]+SDR"
  contseg check MyMethod --plugin my_method.py
  contseg check MiB --set model.backbone=resnet18 model.weights=none
""",
    "report": """
  contseg report --out runs/voc --protocol plop
  contseg report --out runs/voc --format html latex --with-published
  contseg report --out runs/voc --figures figures --predictions 5 --data voc=/data/VOC2012
""",
    "site": """
  contseg site runs/voc runs/ade --out leaderboard
  contseg site results --out leaderboard --protocol sdr plop
""",
    "predict": """
  contseg predict runs/voc/records/.../step5.json street.jpg photos/ --out seen
  contseg predict 9f1c2e street.jpg --results runs/voc --method MiB --longest 1024 --out seen
""",
    "export": """
  contseg export 9f1c2e --results runs/voc --out step5.pt2
  contseg export runs/voc/records/.../step5.json --out step5.safetensors
""",
    "submit": """
  contseg submit --records runs/voc --out our-lab-2026 --data voc=/data/VOC2012
  contseg submit --records runs/voc --out our-lab-fixed --replaces our-lab-2026 --reason "two images were read twice"
""",
    "leaderboard": """
  contseg leaderboard check . --request merged --data voc=/data/VOC2012
  contseg leaderboard accept .
  contseg leaderboard build . --out pages
""",
    "reproduce": """
  contseg reproduce runs/voc/records/.../step5.json --data voc=/data/VOC2012 --out runs/again
""",
    "cache": """
  contseg cache list --out runs/voc
  contseg cache prune --config voc --data voc=/data/VOC2012 --out runs/voc
""",
}
